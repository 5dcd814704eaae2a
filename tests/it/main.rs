//! Tests over real sockets against the real program. One binary: linking is most of their cost.

mod kill;
mod support;
