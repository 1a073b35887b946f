//! Can QEMU use what a backup of a running instance makes for it? libvirt starts QEMU as a user of its own, on Debian
//! `libvirt-qemu`, and where AppArmor is on confines it further. libvirt itself opens an instance's AppArmor profile for each
//! scratch file (its security driver labels the file, and `virt-aa-helper` appends it), but never for the socket of a pull
//! backup: no libvirt up to 11.3 does. That takes a rule of the host's administrator.

use std::path::Path;

use nix::unistd::{Uid, User};

use super::Finding;
use super::passage::Walker;
use crate::config::Config;
use crate::host::hypervisor::{Hypervisor, InstanceSummary};
use crate::host::mover::mounts_spread;
use crate::model::instance::PowerState;
use crate::model::owner::Owner;

/// `Y` where the kernel enforces AppArmor's profiles.
const APPARMOR_SWITCH: &str = "/sys/module/apparmor/parameters/enabled";
/// Files of this folder are part of every instance's profile, from libvirt 9.6 on.
const RULES_FOLDER: &str = "/etc/apparmor.d/abstractions/libvirt-qemu.d";
/// Before, Debian's libvirt took only this file, which newer ones read as well.
const RULES_FILE: &str = "/etc/apparmor.d/local/abstractions/libvirt-qemu";

/// Who QEMU is, and whether it comes to its sockets and scratch. `there` stands in for a run directory that is not there yet.
pub async fn check(config: &Config, there: &Path, hypervisor: &dyn Hypervisor) -> Vec<Finding> {
    let directories = [("worker.run_dir", &config.worker.run_dir), ("scratch.dir", &config.scratch.dir)];
    let mut findings = match hypervisor.qemu_owner(None).await {
        Ok(Some(owner)) => {
            let mut findings = vec![Finding::ok("qemu", format!("runs as {}", name(owner)))];
            let walker = Walker::of(owner);
            findings.extend(directories.map(|(key, directory)| passage(&walker, owner, key, directory)));
            findings
        }
        Ok(None) => vec![Finding::ok("qemu", "runs as the user of libvirt itself")],
        Err(failure) => vec![Finding::fail("qemu", format!("{failure:#}"), "`virsh capabilities`")],
    };
    findings.push(push(&config.worker.run_dir, there, hypervisor).await);
    if std::fs::read_to_string(APPARMOR_SWITCH).is_ok_and(|switch| switch.starts_with('Y')) {
        findings.push(apparmor(&config.worker.run_dir, &rules()));
    }
    findings
}

/// Whether QEMU sees what is mounted for it to write to, tried with every instance that runs, of which some may be older than a mount
/// that was made shared since. What pull needs is looked at elsewhere, so that this is no failure of the host.
async fn push(run_dir: &Path, there: &Path, hypervisor: &dyn Hypervisor) -> Finding {
    let running = |summary: &InstanceSummary| matches!(summary.state, PowerState::Running | PowerState::Paused);
    let instances = hypervisor.instances().await.unwrap_or_default();
    let mut blind = Vec::new();
    let mut tried = 0;
    for instance in instances.iter().filter(|summary| running(summary)) {
        let owner = hypervisor.qemu_owner(Some(instance.id)).await.ok().flatten();
        let Ok(process) = hypervisor.qemu_process(instance.id, owner).await else { continue };
        match mounts_spread(there, Some(process)) {
            Ok(true) => tried += 1,
            Ok(false) => blind.push(instance.name.to_string()),
            // It has ended meanwhile, or mounting failed, which is looked at below.
            Err(_) => {}
        }
    }
    // The mount table names no links.
    let run_dir = &run_dir.canonicalize().unwrap_or_else(|_| run_dir.to_owned());
    let shown = run_dir.display();
    let remedy = format!(
        "`transfer: push` needs `{shown}` on a mount that is `shared` and was so when libvirt was started: `mount --make-shared`, then \
         start libvirt and the instances anew; pull works without"
    );
    match mounts_spread(there, None) {
        Ok(true) if blind.is_empty() && tried > 0 => {
            Finding::ok("push", format!("what is mounted below `{shown}` is seen by all {tried} running instances"))
        }
        Ok(true) if blind.is_empty() => Finding::ok("push", format!("what is mounted below `{shown}` spreads")),
        Ok(true) => {
            let text = format!("what is mounted below `{shown}` is not seen by: {}", blind.join(", "));
            Finding::warn("push", text, remedy)
        }
        Ok(false) => Finding::warn("push", format!("what is mounted below `{shown}` does not spread"), remedy),
        Err(error) => Finding::warn("push", format!("cannot try a mount below `{shown}`: {error}"), remedy),
    }
}

fn name(owner: Owner) -> String {
    let known = User::from_uid(Uid::from_raw(owner.user)).ok().flatten();
    let user = known.map_or_else(|| "a user without a name".to_owned(), |user| format!("`{}`", user.name));
    format!("{user} (uid {}, gid {})", owner.user, owner.group)
}

fn passage(walker: &Walker, owner: Owner, key: &str, directory: &Path) -> Finding {
    let shown = directory.display();
    match walker.stopped_at(directory) {
        Ok(None) => Finding::ok("qemu", format!("can pass to `{shown}`")),
        Ok(Some(closed)) => {
            let closed = closed.display();
            let text = format!("{} cannot pass `{closed}` on its way to `{shown}`", name(owner));
            let remedy = format!("`chmod o+x {closed}`, or put `{key}` where it can; running instances need it");
            Finding::fail("qemu", text, remedy)
        }
        Err(error) => Finding::fail("qemu", format!("cannot see the way to `{shown}`: {error}"), "correct the path"),
    }
}

/// All rules that the host's administrator added for QEMU, as far as they can be read.
fn rules() -> String {
    let folder = std::fs::read_dir(RULES_FOLDER).into_iter().flatten().flatten().map(|entry| entry.path());
    folder
        .chain([RULES_FILE.into()])
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Whether a rule speaks of our sockets. A hint: it doesn't say whether the rule is right, nor whether libvirt was told to
/// leave instances unconfined (`security_driver` in qemu.conf).
fn apparmor(run_dir: &Path, rules: &str) -> Finding {
    let run_dir = run_dir.display().to_string();
    let run_dir = run_dir.trim_end_matches('/');
    let speaks = |line: &str| !line.trim_start().starts_with('#') && line.contains(&format!("{run_dir}/"));
    if rules.lines().any(speaks) {
        return Finding::ok("apparmor", format!("has a rule for sockets below `{run_dir}`"));
    }
    let text = format!("has no rule that lets QEMU make its sockets below `{run_dir}`");
    let remedy = format!(
        "put the line `{run_dir}/*/nbd rw,` into `{RULES_FOLDER}/longshore` (libvirt before 9.6: into `{RULES_FILE}`); it \
         counts from an instance's next start or backup"
    );
    Finding::warn("apparmor", text, remedy)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_rule_for_the_sockets_is_found_and_one_that_is_commented_out_is_not() {
        let level = |rules| apparmor(Path::new("/run/longshore/"), rules).level;
        assert_eq!(level("  # ours\n  /run/longshore/*/nbd rw,\n"), Level::Ok);
        for without in ["", "# /run/longshore/*/nbd rw,", "/run/longshore-lab/*/nbd rw,"] {
            assert_eq!(level(without), Level::Warn, "{without}");
        }
    }

    #[test]
    fn the_remedy_is_a_rule_that_satisfies_the_check() {
        let remedy = apparmor(Path::new("/run/longshore"), "").remedy.unwrap_or_default();
        let line = remedy.split('`').nth(1).unwrap_or_default();
        assert_eq!(apparmor(Path::new("/run/longshore"), line).level, Level::Ok, "{line}");
    }
}
