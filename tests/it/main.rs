//! Tests over real sockets against the real program. One binary: linking is most of their cost.

mod batch;
mod calls;
mod disk;
mod end_to_end;
mod kill;
mod result;
mod stream_submit;
mod submit;
mod support;
mod watch;
