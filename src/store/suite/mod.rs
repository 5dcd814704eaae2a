//! The specification of [`Store`](super::Store) as tests. Every store runs all of them with [`store_suite!`].
//!
//! A case is an `async fn(Open)` of a topic; the list below makes the tests of it. One that is not in the list is
//! dead code, which the compiler tells.

pub(crate) mod groups;
mod new;
pub(crate) mod room;
pub(crate) mod submit;
mod world;

pub use self::new::{New, drawn, job};
pub use self::world::{KIND, Open, World, busy, id, ids, leased_ids, outcome_ids, secs};

macro_rules! assert_matches {
    ($value:expr, $($pattern:tt)+) => {
        match $value {
            $($pattern)+ => {}
            other => panic!("{other:?} is not {}", stringify!($($pattern)+)),
        }
    };
}
use assert_matches;

/// Makes a test of every case. `$open` is the full path of an
/// `async fn(PathBuf, Arc<Config>, Timestamp) -> Arc<dyn Store>`.
macro_rules! store_suite {
    ($open:path) => {
        $crate::store::suite::store_suite! { $open;
            submit {
                a_job_is_as_it_was_asked_for
                a_drawn_id_is_as_good_as_ones_own
                a_job_starts_in_the_state_of_its_start_time
                a_repeated_request_answers_with_its_job
                a_request_id_belongs_to_its_caller
                a_request_id_with_another_spec_is_refused
                a_request_id_is_remembered_beyond_its_job
                a_request_id_is_forgotten_after_its_window
                a_job_id_answers_with_its_job
                a_job_id_with_another_spec_is_refused
                a_job_id_is_free_after_delete
                a_repeat_by_job_id_remembers_its_request_id
                request_ids_come_before_job_ids
                job_ids_come_before_unique_keys
                request_ids_come_before_unique_keys
                a_unique_key_answers_with_its_holder
                a_unique_key_refuses_if_asked_to
                a_unique_key_belongs_to_its_queue
                a_unique_key_is_free_at_the_end
                a_request_that_met_a_unique_key_can_be_repeated
                a_repeat_shows_the_job_as_it_is_now
                a_submit_tells_where_to_watch_from
            }
            groups {
                a_group_is_accepted_whole
                a_refused_group_leaves_nothing_behind
                the_others_are_not_touched
                the_first_refusal_is_told
                a_group_sees_its_own_job_ids
                a_group_sees_its_own_request_ids
                a_group_sees_its_own_unique_keys
                a_batch_sees_the_groups_before
                nothing_asked_is_nothing_done
            }
            room {
                a_full_store_refuses_new_jobs
                a_full_store_still_answers_repeats
                a_queue_has_a_limit_of_its_own
                bytes_are_limited
                a_group_may_be_too_much
                every_end_makes_room
                the_number_of_lines_is_limited
                a_full_disk_refuses_new_jobs_only
            }
        }
    };
    ($open:path; $($topic:ident { $($case:ident)+ })+) => {
        $(mod $topic {
            $(#[tokio::test]
            async fn $case() {
                let open: $crate::store::suite::Open =
                    |dir, config, now| Box::pin($open(dir, config, now));
                $crate::store::suite::$topic::$case(open).await;
            })+
        })+
    };
}
pub(crate) use store_suite;

use std::time::Duration;

use super::*;
use crate::job::*;
