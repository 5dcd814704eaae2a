//! The specification of [`Store`](super::Store) as tests. Every store runs all of them with [`store_suite!`].
//!
//! A case is an `async fn(Open)` of a topic; the list below makes the tests of it. One that is not in the list is
//! dead code, which the compiler tells.

pub(crate) mod change;
pub(crate) mod claim;
pub(crate) mod feed;
pub(crate) mod groups;
pub(crate) mod lists;
mod model;
mod new;
pub(crate) mod random;
pub(crate) mod renew;
pub(crate) mod reopen;
pub(crate) mod room;
pub(crate) mod settle;
pub(crate) mod submit;
pub(crate) mod time;
pub(crate) mod views;
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
                a_repeat_reads_no_bodies
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
                a_check_asks_for_room_but_takes_none
                a_queue_has_a_limit_of_its_own
                bytes_are_limited
                a_group_may_be_too_much
                every_end_makes_room
                the_number_of_lines_is_limited
                a_full_disk_refuses_new_jobs_only
            }
            claim {
                a_lease_carries_the_job
                jobs_come_in_the_order_they_became_due
                equals_come_in_submit_order
                a_point_of_priority_is_worth_a_minute
                kinds_of_a_queue_share_one_order
                only_what_was_asked_for_is_claimed
                only_queued_jobs_are_claimed
                what_waited_too_long_is_not_claimed
                nothing_is_claimed_twice
                a_short_queue_is_not_kept_waiting
                every_queue_has_its_turn
                a_cap_holds_for_its_queue
                a_claim_ends_with_its_bytes
                the_attempt_timeout_is_the_jobs_or_its_queues
                the_next_attempt_hears_of_the_last
                a_new_run_begins_with_nothing
                claims_that_wait_share_what_comes
                claims_that_share_keep_their_limits
                a_claim_may_wait_for_jobs
                a_job_that_is_claimed_as_it_comes_is_like_any_other
                a_claim_may_wait_on_while_it_is_given_jobs
                a_claim_that_waited_knows_the_time
            }
            settle {
                a_success_ends_the_job
                an_output_may_be_empty
                a_failure_backs_off
                jitter_shortens_the_back_off
                retries_follow_the_job_then_its_queue
                some_failures_are_for_good
                a_failure_may_say_when_to_try_again
                the_newest_attempts_are_remembered
                a_released_attempt_does_not_count
                a_release_may_wait
                a_release_may_be_only_of_what_is_over
                progress_outlives_a_release_but_not_the_run
                a_late_success_counts_until_the_next_attempt
                a_late_failure_does_not_count
                a_report_before_the_lease_is_found_over_counts
                a_lease_is_settled_once
                a_batch_of_reports_is_carried_out_in_order
                a_foreign_lease_is_refused
                a_cancel_takes_effect_unless_success_comes_first
            }
            renew {
                a_renewal_prolongs_the_lease
                a_renewal_is_not_a_transition
                a_lease_that_nobody_found_over_can_be_renewed
                a_renewal_tells_of_a_cancel
                a_lease_leads_to_its_job
                a_lost_lease_is_not_renewed
                the_newest_progress_is_seen
                progress_survives_a_lost_lease
            }
            change {
                a_cancel_ends_what_waits
                a_cancel_asks_what_runs
                a_cancelled_attempt_that_is_lost_is_cancelled
                a_cancel_leaves_a_final_job
                a_reason_may_be_missing
                an_etag_is_compared
                an_unknown_job_is_not_found
                a_retry_begins_a_new_run
                a_retry_may_wait
                a_retry_ends_a_back_off
                a_retry_is_refused_elsewhere
                a_retry_takes_its_unique_key_again
                of_two_retries_the_first_takes_the_unique_key
                a_retry_leaves_no_lease_of_the_run_before
                a_delete_removes_a_final_job
                a_delete_takes_the_outcomes_of_every_run
                a_delete_is_refused_before_the_end
                a_batch_of_changes_is_carried_out_in_order
            }
            time {
                a_scheduled_job_becomes_due
                a_back_off_ends
                a_back_off_of_nothing_is_over_at_once
                a_tick_goes_by_its_own_time
                a_job_that_nobody_starts_in_time_expires
                only_the_first_start_has_a_timeout
                a_job_that_waits_too_long_expires
                a_job_that_runs_too_long_expires
                the_total_timeout_is_over_all_attempts
                a_retry_restarts_the_clocks
                a_lease_that_runs_out_spends_its_attempt
                retention_removes_the_job
                a_removed_job_is_not_forgotten_by_its_request
                retention_counts_from_the_last_end
                an_older_outcome_does_not_come_back
                a_deleted_job_is_not_removed_again
                the_feed_forgets_what_is_old
                the_feed_forgets_what_is_too_much
                much_may_be_due_at_once
                the_next_time_is_the_nearest
            }
            views {
                a_view_shows_what_was_asked_for
                jobs_come_at_the_places_of_their_ids
                a_read_knows_the_head_of_the_feed
                every_answer_shows_the_same_job
            }
            lists {
                the_newest_comes_first
                jobs_are_found_by_id
                jobs_are_found_by_queue_and_kind
                jobs_are_found_by_state
                jobs_are_found_by_label
                jobs_are_found_by_submit_time
                a_page_ends_at_its_limit
                pages_lose_and_repeat_nothing
                a_page_of_few_matches_ends
                a_page_shows_its_view
                a_page_is_bounded_in_bytes
                a_page_knows_where_to_watch_from
            }
            feed {
                outcomes_come_in_commit_order
                outcomes_of_a_batch_keep_its_order
                a_page_of_outcomes_follows_the_other
                a_page_may_be_of_some_queues_alone
                what_was_deleted_is_left_out
                every_run_has_its_outcome
                a_page_of_outcomes_is_bounded_in_bytes
                existing_shows_the_newest_of_final_jobs
                existing_stays_in_its_bounds
                a_deletion_tells_up_to_where_outcomes_are_gone
                a_time_has_a_position
                a_time_passes_nothing_over
                the_head_is_told
                outcomes_that_are_told_are_those_that_are_read
                what_may_be_due_is_told
                changes_are_told_while_somebody_listens
                counts_follow_the_jobs
            }
            reopen {
                what_was_acknowledged_is_there
                a_killed_process_takes_nothing_along
                work_goes_on
                an_attempt_that_ran_is_spent
                leases_of_before_are_over
                a_lease_beyond_the_process_outlives_it
                a_late_success_counts_over_a_restart
                fences_never_repeat
                positions_go_on
                settings_of_queues_may_change
                a_closed_store_does_nothing
            }
            random {
                a_store_does_what_a_list_in_memory_does
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
