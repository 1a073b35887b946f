//! Images, as qemu-img sees them: past the code under test.

use std::path::Path;
use std::process::Command;

/// Says with qemu-img's own comparison that two images read the same.
pub fn equal(one: &Path, one_format: &str, other: &Path, other_format: &str) {
    qemu_img(&["compare", "-q", "-f", one_format, "-F", other_format, one.to_str().unwrap(), other.to_str().unwrap()]);
}

/// What qemu-img prints; it must end well.
pub fn qemu_img(arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "qemu-img {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}
