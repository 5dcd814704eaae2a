//! Compiles the contract under `proto/` without protoc, and writes its descriptor set for reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 4] = [
    "proto/jobwire/v1/types.proto",
    "proto/jobwire/v1/job_service.proto",
    "proto/jobwire/v1/worker_service.proto",
    "proto/jobwire/v1/admin_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("jobwire.v1.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        // Payloads become cheap clones of one buffer.
        .bytes(".")
        // A fixed field order, so that the hash of a message is stable.
        .btree_map(".")
        // A Job is about 1 KiB: without boxes every checkpoint would be as large.
        .boxed(".jobwire.v1.WatchResultsResponse.event.finished")
        .boxed(".jobwire.v1.WatchResultsResponse.event.changed")
        .boxed(".jobwire.v1.WorkResponse.message.lease")
        .compile_fds(descriptors)?;
    Ok(())
}
