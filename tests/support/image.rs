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

/// Does what those commands of qemu-io say.
#[allow(dead_code)] // Each live target uses its own part.
pub fn qemu_io(image: &Path, format: &str, commands: &[&str]) {
    let each = commands.iter().flat_map(|command| ["-c", command]);
    let output = Command::new("qemu-io").args(["-f", format]).args(each).arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("failed"), "{commands:?} of {}: {said}", image.display());
}

/// Says with qemu-io that the first `length` of an image is `pattern` all through.
#[allow(dead_code)] // Each live target uses its own part.
pub fn holds(image: &Path, format: &str, pattern: u8, length: &str) {
    let read = format!("read -P {pattern} 0 {length}");
    let output = Command::new("qemu-io").args(["-f", format, "-c", &read]).arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("failed"), "{read} of {}: {said}", image.display());
}
