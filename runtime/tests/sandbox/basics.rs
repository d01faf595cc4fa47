use std::fs;
use std::time::Duration;

use rbuild_runtime::{Error, Sandbox};

use crate::Test;
use crate::support::{Image, run, sandbox, tree};

pub(crate) const TESTS: &[Test] = &[
    ("exit_codes", exit_codes),
    ("output_env_and_pid", output_env_and_pid),
    ("exec_errors", exec_errors),
    ("stubs_leave_no_trace", stubs_leave_no_trace),
    ("latency", latency),
];

fn exit_codes() {
    let image = Image::new();
    assert_eq!(image.sh("exit 7").exit.code, Some(7));
    assert_eq!(image.sh("kill -9 $$").exit.signal, None, "pid 1 does not kill itself");
    assert_eq!(image.sh("sh -c 'kill -9 $$'; exit $?").exit.code, Some(137));
}

fn output_env_and_pid() {
    let image = Image::new();
    let output = image.sh("echo out; echo err >&2; echo $$; ls /proc/self/fd | wc -l");
    assert_eq!(output.stderr, "err\n");
    // Three and the directory being listed.
    assert_eq!(output.stdout, "out\n1\n4\n");
    assert_eq!(run(image.spec(&["env"])).unwrap().stdout, "PATH=/bin\nB=2\nA=1\n", "in order and nothing else");
}

fn exec_errors() {
    let image = Image::new();
    fs::write(image.path("lower/bin/plain"), "x").unwrap();
    let failed = |program: &str| match run(image.spec(&[program])) {
        Err(Error::Exec(failure)) => (failure.message, failure.exit_code),
        other => panic!("{program}: {other:?}"),
    };
    assert_eq!(failed("nosuch"), ("exec: \"nosuch\": executable file not found in $PATH".to_owned(), 127));
    assert_eq!(failed("/no/such"), ("exec: \"/no/such\": stat /no/such: no such file or directory".to_owned(), 127));
    assert_eq!(failed("/bin/plain"), ("exec: \"/bin/plain\": permission denied".to_owned(), 126));
    assert_eq!(failed("/etc"), ("exec: \"/etc\": is a directory".to_owned(), 126));
}

fn stubs_leave_no_trace() {
    let image = Image::new();
    let before = fs::metadata(image.path("lower/etc")).unwrap().modified().unwrap();
    let mut spec = image.spec(&["/bin/sh", "-c", "cat /etc/hosts; touch /etc/new"]);
    fs::write(image.path("hosts"), "127.0.0.1 localhost\n").unwrap();
    spec.etc.hosts = Some(image.path("hosts"));
    let output = run(spec).unwrap();
    assert_eq!(output.stdout, "127.0.0.1 localhost\n", "{output:?}");
    assert_eq!(tree(&image.path("upper")), ["etc", "etc/new"]);
    assert_eq!(fs::metadata(image.path("lower/etc")).unwrap().modified().unwrap(), before);
}

fn latency() {
    let image = Image::new();
    let mut all = Vec::new();
    for _ in 0..30 {
        let started = std::time::Instant::now();
        let running = sandbox().start(image.spec(&["/bin/true"])).unwrap();
        let at = started.elapsed();
        running.wait().unwrap();
        let waited = started.elapsed();
        drop(running);
        all.push((waited, at, started.elapsed()));
    }
    all.sort();
    // Seven milliseconds on a quiet machine; this only notices when something waits that should not.
    let median = all[all.len() / 2].0;
    assert!(median < Duration::from_millis(300), "{all:?}");
}
