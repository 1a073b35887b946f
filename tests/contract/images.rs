//! What a mover says of images that a restore has left on a cluster.

use longshore::failure::{Code, RbdRemains};
use longshore::host::mover::Mover;
use longshore::model::network::NetworkAccess;
use longshore::mover::protocol::{NamedKey, Reply, Request};

use super::{SOON, done, refused};

/// Two that are there, and one that is not.
pub async fn images_that_are_there_are_named_and_stay(
    mover: &mut Box<dyn Mover>,
    (key, access): (NamedKey, &NetworkAccess),
    there: [&str; 2],
    gone: &str,
) {
    let look = |images: &[&str]| {
        let remains = |image: &&str| RbdRemains { image: (*image).to_owned(), access: access.clone() };
        Request::LookAtImages { images: images.iter().map(remains).collect() }
    };
    assert_eq!(refused(mover, look(&there)).await.code, Code::Internal, "it has no key");
    done(mover, Request::Keys { keys: vec![key] }).await;
    for _again in 0..2 {
        for (asked, expected) in
            [(&[gone][..], &[][..]), (&[], &[]), (&[there[1], gone, there[0]], &[there[1], there[0]])]
        {
            let expected = expected.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(mover.ask(look(asked), SOON).await.unwrap(), Reply::Images { there: expected });
        }
    }
}
