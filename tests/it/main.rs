//! Tests over real sockets against the real program. One binary: linking is most of their cost.

mod batch;
mod calls;
mod changes;
mod disk;
mod end_to_end;
mod flaky;
mod kill;
mod list;
mod result;
mod stream_submit;
mod submit;
mod support;
mod watch;
mod watch_ends;
mod watch_hints;
