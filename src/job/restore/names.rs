//! Asking for files to be made, named, exchanged or removed, which needs neither the repository nor the lease: by the job's mover or,
//! where that one does not answer, by another one. Whatever became of the repository, the files are put in order.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::{Code, Failure, LogicalName, RbdRemains, Remains};
use crate::job::common::Common;
use crate::job::keys;
use crate::model::network::SecretRef;
use crate::mover::protocol::{Reply, Request, RestoredVolume, VolumePlace};

/// Longest time for exchanging, naming or removing volumes: names alone, but the storage may be slow to free what a large volume took.
const NAMES_SECONDS_MAX: u64 = 300;

/// Longest time for removing volumes of which some are images on a cluster, all of whose objects it looks for.
const IMAGES_GO_SECONDS_MAX: u64 = 4 * 3600;

/// Longest time for that where a mover does not answer.
pub(super) const GO_BY_ANOTHER_SECONDS_MAX: u64 = 2 * IMAGES_GO_SECONDS_MAX + 120;

/// Longest time for names where a mover does not answer, which has to be ended and followed by another.
pub(super) const NAMES_BY_ANOTHER_SECONDS_MAX: u64 = 2 * NAMES_SECONDS_MAX + 120;

/// Whether nobody has answered, in which case anything may have happened.
pub(super) fn is_silence(failure: &Failure) -> bool {
    matches!(failure.code, Code::MoverDied | Code::MoverUnresponsive | Code::HostIo | Code::HostUnfit)
}

/// What may still be there where it could not be removed.
#[derive(Default)]
pub(super) struct Left {
    /// As they are told.
    names: Vec<String>,
    /// By these it can be seen whether they are gone.
    files: Vec<PathBuf>,
    /// Likewise.
    logical: Vec<LogicalName>,
    /// These are looked at later, and by whoever reads how; each with the name of its volume.
    images: Vec<(RbdRemains, String)>,
}

impl Left {
    /// Some files.
    pub fn files(files: Vec<PathBuf>) -> Self {
        let names = files.iter().map(|path| path.display().to_string()).collect();
        Self { names, files, ..Self::default() }
    }

    /// One of the names of each volume that has it.
    pub fn of(volumes: &[RestoredVolume], name: fn(&VolumePlace) -> Option<&Path>) -> Self {
        let mut left = Self::default();
        for (place, path) in volumes.iter().filter_map(|volume| Some((&volume.place, name(&volume.place)?))) {
            left.names.push(path.display().to_string());
            match place {
                VolumePlace::File { .. } => left.files.push(path.to_owned()),
                VolumePlace::Logical { group, .. } => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    left.logical.push(LogicalName { group: group.clone(), name });
                }
                VolumePlace::Rbd { access, volume, .. } => {
                    let remains = RbdRemains { image: path.display().to_string(), access: (**access).clone() };
                    left.images.push((remains, volume.display().to_string()));
                }
                VolumePlace::Device { .. } => {}
            }
        }
        left
    }

    /// Names it in the failure, in place of a mover that can't be ended, which is the left-over of another step: once that has ended, this may
    /// still be there.
    pub fn of_failure(self, failure: Failure) -> Failure {
        let Self { names, files, logical, images } = self;
        let has_two_names = failure.causes.iter().any(|cause| cause.contains(RbdRemains::NEVER_REMOVE));
        let is_needed = failure.code == Code::Internal || has_two_names;
        let failure =
            names.iter().fold(failure, |failure, name| failure.caused_by(format!("`{name}` may still be there")));
        let failure = images
            .iter()
            .fold(failure, |failure, (remains, volume)| failure.caused_by(advice(&remains.image, volume, is_needed)));
        let images: Vec<_> = images.into_iter().map(|(remains, _)| remains).collect();
        match (files.is_empty() && logical.is_empty(), images.is_empty()) {
            (true, true) => failure,
            (_, false) => failure.leaving(Remains::Images { images, files, logical }),
            (false, true) => failure.leaving(Remains::Volumes { files, logical }),
        }
    }
}

/// What a person does about an image, which nobody else does: who needs one, no cluster knows. One with another name has the same id as
/// what is in use under that.
fn advice(image: &str, volume: &str, is_needed: bool) -> String {
    match is_needed {
        true => format!("look with `rbd info {image}`, and keep it: it may be all that there is of `{volume}`"),
        false => format!(
            "look with `rbd info {image}` and `rbd info {volume}`; where both are found, their ids differ, and nobody needs the first any more (a \
             client that only reads it is not seen, nor an instance that is shut off), remove it with `rbd rm {image}`"
        ),
    }
}

/// How long a mover may take.
fn limit_of(request: &Request) -> Duration {
    let images = match request {
        Request::RemoveFresh { volumes } | Request::RemovePrevious { volumes } => {
            volumes.iter().any(|volume| matches!(volume.place, VolumePlace::Rbd { .. }))
        }
        _ => false,
    };
    Duration::from_secs(if images { IMAGES_GO_SECONDS_MAX } else { NAMES_SECONDS_MAX })
}

/// What the storage of the volumes asks for.
fn secrets_of(request: &Request) -> impl Iterator<Item = &SecretRef> {
    let volumes = match request {
        Request::Exchange { volumes, .. } | Request::RemoveFresh { volumes } | Request::RemovePrevious { volumes } => {
            volumes.as_slice()
        }
        _ => &[],
    };
    volumes.iter().filter_map(|volume| volume.place.secret())
}

/// Asks the job's mover for something that needs neither repository nor lease or, where that one does not answer, another one that is
/// started for this alone: whatever became of the repository, the volumes are put in order.
pub(super) async fn ask_about_names(common: &mut Common, request: Request) -> Result<Reply, Failure> {
    let limit = limit_of(&request);
    if common.session.answers() {
        match common.session.ask(request.clone(), limit).await {
            Err(failure) if is_silence(&failure) => common.late_warnings.push(failure),
            answer => return answer,
        }
    }
    // Two movers at the same names would be each other's undoing: whichever was there has to be gone, that of a worker that was killed
    // as well.
    common.session.stop().await?;
    common.aside.stop().await?;
    let name = common.mover_name()?;
    let movers = common.doors.movers.clone();
    if movers.lives(&name).await? {
        let text = format!("mover `{name}` was started before and has not ended");
        return Err(Failure::new(Code::MoverUnresponsive, text));
    }
    common.aside.start(movers.as_ref(), &name).await?;
    let given = keys::give(&mut common.aside, common.doors.hypervisor.as_ref(), secrets_of(&request)).await;
    if let Err(failure) = given {
        if let Err(stays) = common.aside.stop().await {
            common.late_warnings.push(stays);
        }
        // Nothing was asked, and nobody knows what the first one did.
        return Err(Failure { code: Code::HostIo, ..failure });
    }
    // Nobody knows what has happened since the first one was asked.
    let request = match request {
        Request::Exchange { volumes, .. } => Request::Exchange { volumes, only_go_on: true },
        other => other,
    };
    let answer = common.aside.ask(request, limit).await;
    if let Err(stays) = common.aside.stop().await {
        common.late_warnings.push(stays);
    }
    answer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::instance::ImageFormat;

    fn volume(place: VolumePlace) -> RestoredVolume {
        let (disk, format) = ("vda".parse().unwrap(), ImageFormat::Raw);
        RestoredVolume { disk, virtual_bytes: 1, content_root: String::new(), format, place }
    }

    fn image() -> RestoredVolume {
        let path = |name: &str| format!("volumes/{name}").into();
        let (fresh, previous) = (path("web.new"), path("web.previous"));
        volume(VolumePlace::Rbd { access: Box::default(), volume: path("web"), fresh, previous })
    }

    fn file() -> RestoredVolume {
        let path = |name: &str| format!("/images/{name}").into();
        volume(VolumePlace::File { volume: path("a"), fresh: path("a.new"), previous: path("a.previous") })
    }

    #[test]
    fn images_are_looked_at_later_whatever_else_is_left() {
        let remains = |failure: Failure, volumes: &[RestoredVolume]| {
            Left::of(volumes, VolumePlace::fresh).of_failure(failure).remains.map(|remains| remains.to_string())
        };
        let failure = || Failure::new(Code::VolumeIo, "it was cut off");
        let stuck = || failure().leaving(Remains::Process { pid: 7, started: 1, directories: Vec::new() });
        let shown = |remains: Option<String>, parts: &[&str]| {
            let remains = remains.unwrap();
            assert!(parts.iter().all(|part| remains.contains(part)), "{remains}");
            remains.matches(" and ").count() + 1 == parts.len()
        };
        assert!(shown(remains(failure(), &[image()]), &["RBD image `volumes/web.new`"]));
        assert!(shown(remains(failure(), &[file(), image()]), &["volumes/web.new", "/images/a.new"]));
        assert!(shown(remains(stuck(), &[image()]), &["volumes/web.new"]), "the mover is another step's");
        assert!(shown(remains(failure(), &[file()]), &["/images/a.new"]));
    }

    #[test]
    fn the_removal_of_an_image_is_a_persons_and_not_advised_where_it_may_be_needed() {
        let told = |failure: Failure| {
            let failed = Left::of(&[image(), file()], VolumePlace::previous).of_failure(failure);
            assert!(matches!(failed.remains.as_deref(), Some(Remains::Images { .. })), "{failed:?}");
            format!("{failed:#}")
        };
        let failure = |code: Code| Failure::new(code, "why");
        let removable = told(failure(Code::VolumeIo));
        for line in ["`rbd info volumes/web.previous`", "`rbd info volumes/web`", "`rbd rm volumes/web.previous`"] {
            assert!(removable.contains(line), "{removable}");
        }
        let two_names = failure(Code::VolumeIo).caused_by(format!("{} either name", RbdRemains::NEVER_REMOVE));
        for needed in [told(failure(Code::Internal)), told(two_names)] {
            let line = "`rbd info volumes/web.previous`";
            assert!(needed.contains(line) && !needed.contains("`rbd rm volumes"), "{needed}");
        }
    }
}
