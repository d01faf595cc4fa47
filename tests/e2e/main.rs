//! End-to-end tests: the real program, a state directory of its own for each test, nothing of the host's engines.
//!
//! One binary for all files, so that it links once. What a test needs from outside is the static busybox of the
//! host, for a base image; registries are in memory, on the loopback interface.

mod attest;
mod bad_input;
mod btrfs;
#[path = "../../store/tests/fixture/disk.rs"]
mod btrfs_disk;
mod build;
mod caching;
mod check;
mod concurrency;
mod container_files;
mod containers;
mod contexts;
mod copying;
mod crash;
mod determinism;
mod devices;
mod diagnostics;
mod disk;
mod escapes;
mod exchange;
mod exchange_explained;
mod exchange_passed_on;
mod exchange_retention;
mod faults;
mod founding;
mod history;
mod images;
mod integrity;
mod interrupt;
mod isolation;
mod killed;
mod mounts;
mod mutations;
mod network;
mod oracle;
mod outputs;
mod peers;
mod platforms;
mod projects;
mod recopy;
mod registry;
mod remote;
mod resumed;
mod run;
mod runtimes;
mod scene;
mod serve;
mod side_by_side;
mod storage_size;
mod supervision;
mod system;
mod usage;
mod volumes;
mod watching;
