/// Divides what is wanted among queues, each with so many jobs that are due: turn by turn, so that a long queue does not
/// keep a short one waiting, and nothing is left idle while any queue has work. Leaves out those that get nothing.
pub fn turns<T>(mut queues: Vec<(T, usize)>, wanted: usize) -> Vec<(T, usize)> {
    // The shortest first: what it does not need goes to the others.
    queues.sort_by_key(|(_, available)| *available);
    if wanted < queues.len() {
        // Not enough for all: another one comes first each time.
        let first = fastrand::usize(..queues.len());
        queues.rotate_left(first);
    }
    let (mut left, mut to_come) = (wanted, queues.len());
    for (_, quota) in &mut queues {
        *quota = (*quota).min(left.div_ceil(to_come));
        left -= *quota;
        to_come -= 1;
    }
    queues.retain(|(_, quota)| *quota > 0);
    queues
}
