//! How long builds take, from a cold process: `cargo bench --bench build [NAME]`. Prints the best and the median of
//! several rounds in milliseconds and judges nothing; the machine decides too much.

#[path = "../tests/e2e/scene.rs"]
#[allow(dead_code, reason = "a benchmark asks less of a scene than the tests do")]
mod scene;

use std::time::{Duration, Instant};

use scene::Scene;

const ROUNDS: u32 = 15;

/// Does the thing once and says how long it took.
type Measure = fn(&Scene) -> Duration;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let all: [(&str, Measure); 5] = [
        ("version: the program starts and ends", version),
        ("cached: nothing changed", cached),
        ("run-true: three RUN true, per step", run_true),
        ("copy: 2000 small files, no cache", copy),
        ("run: a container without network", run),
    ];
    for (name, measure) in all {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.starts_with(word.as_str())) {
            continue;
        }
        let scene = Scene::with_busybox();
        prepare(&scene);
        measure(&scene);
        let mut times: Vec<f64> = (0..ROUNDS).map(|_| measure(&scene).as_secs_f64() * 1000.0).collect();
        times.sort_by(f64::total_cmp);
        println!("{:8.2} {:8.2} ms  {name}", times[0], times[times.len() / 2]);
    }
}

fn prepare(scene: &Scene) {
    for n in 0..2000 {
        scene.write(&format!("many/d{}/f{n}", n % 20), format!("file {n}\n"));
    }
    for n in 0..20 {
        scene.write(&format!("small/f{n}"), format!("file {n}\n"));
    }
    scene.write("cached.Dockerfile", "FROM busybox\nCOPY small /small\nRUN ls /small > /list\nENV A=b\nCMD [\"sh\"]\n");
    scene.write("copy.Dockerfile", "FROM scratch\nCOPY many /many\n");
    scene.write("one.Dockerfile", "FROM busybox\nRUN true\n");
    scene.write("four.Dockerfile", "FROM busybox\nRUN true\nRUN true\nRUN true\nRUN true\n");
    scene.write(".dockerignore", "*.Dockerfile\n");
}

fn timed(scene: &Scene, arguments: &[&str]) -> Duration {
    let start = Instant::now();
    scene.rb(arguments).ok();
    start.elapsed()
}

fn version(scene: &Scene) -> Duration {
    timed(scene, &["version"])
}

fn cached(scene: &Scene) -> Duration {
    timed(scene, &["build", "-q", "--network", "none", "-f", "cached.Dockerfile", "."])
}

fn run_true(scene: &Scene) -> Duration {
    let build = |file: &str| timed(scene, &["build", "-q", "--no-cache", "--network", "none", "-f", file, "."]);
    let one = build("one.Dockerfile");
    build("four.Dockerfile").saturating_sub(one) / 3
}

fn copy(scene: &Scene) -> Duration {
    timed(scene, &["build", "-q", "--no-cache", "-f", "copy.Dockerfile", "."])
}

fn run(scene: &Scene) -> Duration {
    timed(scene, &["run", "--rm", "--network", "none", "busybox", "true"])
}
