use async_trait::async_trait;

use crate::{
    job::{JobError, Payload},
    worker::{Context, Handler},
};

/// Returns the payload as it came.
pub struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn run(&self, _: Context, payload: Payload) -> Result<Payload, JobError> {
        Ok(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handlers::testing::context;

    #[tokio::test]
    async fn returns_what_it_gets() {
        for payload in [Payload::none(), Payload::new("image/png", vec![0, 255, 1])] {
            assert_eq!(Echo.run(context().0, payload.clone()).await, Ok(payload));
        }
    }
}
