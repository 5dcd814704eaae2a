//! Tests over real sockets against the real program. One binary: linking is most of their cost.

mod backup;
mod bad_input;
mod batch;
mod calls;
mod changes;
mod command_line;
mod disk;
mod end_to_end;
mod examples;
mod flaky;
mod frames;
mod kill;
mod limits;
mod list;
mod listener;
mod result;
mod states;
mod stream_submit;
mod submit;
mod support;
mod vanish;
mod watch;
mod watch_ends;
mod watch_hints;
mod wire;
