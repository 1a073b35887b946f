//! Can this host mount network shares? It takes a program of its own for each type, and a kernel that knows the type or has a module for
//! it, which is loaded with the first mount. Nothing is loaded or mounted here, so that a module that may not be loaded (`install` and
//! `blacklist` in modprobe.d(5)) counts as one that can.

use std::io;
use std::path::Path;

use super::Finding;
use crate::mover::{KINDS, Kind, command};

/// What the kernel can mount now (proc_filesystems(5)).
const KNOWN: &str = "/proc/filesystems";
/// The version of the kernel that runs.
const RELEASE: &str = "/proc/sys/kernel/osrelease";
/// Where modules are, a folder a version.
const MODULES: &str = "/lib/modules";
/// The list of a version's modules (depmod(8)).
const MODULE_LIST: &str = "modules.dep";

/// One finding a type.
pub fn check() -> Vec<Finding> {
    let kernel = Kernel::look();
    KINDS.iter().map(|kind| share(kind, command::find(kind.helper).as_deref(), &kernel)).collect()
}

fn share(kind: &Kind, program: Option<&Path>, kernel: &Kernel) -> Finding {
    let Kind { name, helper, package, file_system, .. } = kind;
    let Some(program) = program else {
        let text = format!("`{helper}` is missing: {name} shares cannot be mounted");
        return Finding::note("shares", text, format!("where there are such repositories, install `{package}`"));
    };
    let program = program.display();
    match kernel.support(file_system) {
        Support::Known => Finding::ok("shares", format!("{name}: {program}, and `{file_system}` of the kernel")),
        Support::Module => Finding::ok("shares", format!("{name}: {program}, and the kernel's module `{file_system}`")),
        Support::None(place) => {
            let text =
                format!("{name}: {program} is there, but this kernel does not know `{file_system}`, and {place}");
            let remedy = format!(
                "where there are such repositories: `modprobe {file_system}` (for a container on its machine); where there is no such \
                 module start a kernel that has one, and after an update of the kernel the updated one"
            );
            Finding::warn("shares", text, remedy)
        }
    }
}

/// How a kernel comes to a file system.
#[derive(Debug, PartialEq, Eq)]
enum Support {
    /// It has it.
    Known,
    /// It has a module with it.
    Module,
    /// It does not, as far as can be seen: where a module was looked for.
    None(String),
}

/// The kernel that runs, as far as its files say.
struct Kernel {
    known: String,
    release: String,
    modules: io::Result<String>,
}

impl Kernel {
    fn look() -> Self {
        let read = |place: &str| std::fs::read_to_string(place).unwrap_or_default();
        let release = read(RELEASE).trim().to_owned();
        let modules = std::fs::read_to_string(Path::new(MODULES).join(&release).join(MODULE_LIST));
        Self { known: read(KNOWN), release, modules }
    }

    fn support(&self, file_system: &str) -> Support {
        if self.known.lines().any(|line| line.split_whitespace().last() == Some(file_system)) {
            return Support::Known;
        }
        let folder = format!("{MODULES}/{}", self.release);
        match &self.modules {
            Ok(list) if list.lines().any(|line| module(line) == Some(file_system)) => Support::Module,
            Ok(_) => Support::None(format!("`{folder}` has no module of it")),
            Err(error) => Support::None(format!("its modules cannot be seen: `{folder}/{MODULE_LIST}`: {error}")),
        }
    }
}

/// The module of a line `kernel/fs/nfs/nfs.ko.xz: …`.
fn module(line: &str) -> Option<&str> {
    let path = line.split(':').next()?;
    let (name, _) = path.rsplit('/').next()?.split_once(".ko")?;
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    const LIST: &str = "kernel/fs/nfs/nfs.ko: kernel/fs/lockd/lockd.ko kernel/net/sunrpc/sunrpc.ko\n\
        kernel/fs/smb/client/cifs.ko.zst: kernel/fs/smb/common/smb_common.ko.zst\nkernel/fs/nfs_common/nfs_acl.ko:\n";

    fn kernel(known: &str, modules: io::Result<String>) -> Kernel {
        Kernel { known: known.to_owned(), release: "6.1.0-13-amd64".to_owned(), modules }
    }

    fn missing() -> io::Result<String> {
        Err(io::Error::from(io::ErrorKind::NotFound))
    }

    #[test]
    fn a_file_system_is_known_or_has_a_module_of_its_very_name() {
        let with = kernel("nodev\tnfs4\nnodev\tceph\n\text4\n", Ok(LIST.to_owned()));
        assert_eq!(with.support("ceph"), Support::Known);
        assert_eq!((with.support("nfs"), with.support("cifs")), (Support::Module, Support::Module));
        assert!(matches!(with.support("lockd"), Support::None(_)), "what a module needs has a line of its own");
        assert_eq!(
            kernel("nodev\tcifs\n", missing()).support("cifs"),
            Support::Known,
            "without modules, as in a container"
        );
    }

    #[test]
    fn a_kernel_without_the_file_system_is_a_warning_with_what_was_looked_at() {
        for (modules, said) in
            [(Ok(LIST.to_owned()), "`/lib/modules/6.1.0-13-amd64` has no module of it"), (missing(), "modules.dep`: ")]
        {
            let found = kernel("nodev\tnfs\n", modules).support("ceph");
            assert!(matches!(&found, Support::None(place) if place.contains(said)), "{found:?}");
        }
    }

    #[test]
    fn a_missing_program_is_a_note_and_a_missing_file_system_a_warning() {
        for kind in KINDS {
            let (program, known) = (Some(Path::new("/sbin/helper")), format!("nodev\t{}\n", kind.file_system));
            assert_eq!(share(kind, program, &kernel(&known, missing())).level, Level::Ok);
            let without = share(kind, program, &kernel("", missing()));
            let remedy = without.remedy.unwrap_or_default();
            let modprobe = format!("`modprobe {}`", kind.file_system);
            assert!(without.level == Level::Warn && remedy.contains(&modprobe), "{remedy}");
            let nowhere = share(kind, None, &kernel(&known, missing()));
            assert!(nowhere.level == Level::Note && nowhere.text.contains(kind.helper), "{}", nowhere.text);
        }
    }
}
