//! Tests over real sockets against the real program. One binary: linking is most of their cost.

mod bad_input;
mod batch;
mod calls;
mod changes;
mod flaky;
mod frames;
mod health;
mod limits;
mod list;
mod listener;
mod result;
mod states;
mod stop;
mod stream_submit;
mod submit;
mod support;
mod vanish;
mod watch;
mod watch_ends;
mod watch_hints;
mod web;
mod wire;
