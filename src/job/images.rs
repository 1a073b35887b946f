//! A look at images that jobs have left on clusters: by a mover that is started for this alone, with the key that the hypervisor keeps.
//! Nothing is removed. Who may need an image, its cluster does not know.

use std::time::Duration;

use super::session::Session;
use super::steps::unexpected;
use super::{Doors, keys};
use crate::failure::{Code, Failure, RbdRemains};
use crate::host::mover::MoverName;
use crate::mover::protocol::{Reply, Request};

/// The mover that looks. There is one at a time.
const MOVER: &str = "left-images";

/// Longest time for a look. A cluster that does not answer is given up after a part of it, and the images after the first not asked for.
const LOOK_SECONDS_MAX: u64 = 300;

/// Which of the images are there. An error says nothing of them; its remains are those of a mover that cannot be ended.
pub async fn look_at_images(doors: &Doors, images: &[RbdRemains]) -> Result<Vec<String>, Failure> {
    let name = MOVER.parse::<MoverName>();
    let name = name.map_err(|error| Failure::new(Code::Internal, "a mover cannot be named").because(&error))?;
    if doors.movers.lives(&name).await? {
        let text = format!("mover `{name}` was started before and has not ended");
        return Err(Failure::new(Code::MoverUnresponsive, text));
    }
    let mut session = Session::default();
    session.start(doors.movers.as_ref(), &name).await?;
    let seen = ask(&mut session, doors, images).await;
    // It is asked for again; whatever can't be ended has to be known.
    session.stop().await.and(seen)
}

async fn ask(session: &mut Session, doors: &Doors, images: &[RbdRemains]) -> Result<Vec<String>, Failure> {
    let secrets = images.iter().filter_map(|one| one.access.secret.as_ref());
    keys::give(session, doors.hypervisor.as_ref(), secrets).await?;
    let request = Request::LookAtImages { images: images.to_vec() };
    match session.ask(request, Duration::from_secs(LOOK_SECONDS_MAX)).await? {
        Reply::Images { there } => Ok(there),
        other => Err(unexpected("look_at_images", &other)),
    }
}
