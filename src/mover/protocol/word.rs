//! What each request is called, in messages and by those who script fakes.

use super::Request;

impl Request {
    /// The request's word, for messages and scripted failures.
    pub const fn word(&self) -> &'static str {
        match self {
            Request::Open { .. } => "open",
            Request::OpenToLook { .. } => "open_to_look",
            Request::Keys { .. } => "keys",
            Request::Lease { .. } => "lease",
            Request::Stage { .. } => "stage",
            Request::Record { .. } => "record",
            Request::Copy { .. } => "copy",
            Request::Expose { .. } => "expose",
            Request::Inspect { .. } => "inspect",
            Request::Compare => "compare",
            Request::SourcesUnchanged => "sources_unchanged",
            Request::Seal => "seal",
            Request::Find { .. } => "find",
            Request::Latest { .. } => "latest",
            Request::Publish { .. } => "publish",
            Request::Restore { .. } => "restore",
            Request::LookAtDevices { .. } => "look_at_devices",
            Request::Claim => "claim",
            Request::Overwrite => "overwrite",
            Request::Exchange { .. } => "exchange",
            Request::RemoveFresh { .. } => "remove_fresh",
            Request::RemovePrevious { .. } => "remove_previous",
            Request::LookAtImages { .. } => "look_at_images",
            Request::ReadRecord { .. } => "read_record",
            Request::LookAtNew { .. } => "look_at_new",
            Request::Weigh { .. } => "weigh",
            Request::MakeNew { .. } => "make_new",
            Request::PlaceNew { .. } => "place_new",
            Request::TakeBackNew { .. } => "take_back_new",
            Request::RemoveNew { .. } => "remove_new",
            Request::Validate { .. } => "validate",
            Request::Sweep { .. } => "sweep",
            Request::Chains { .. } => "chains",
            Request::Merge { .. } => "merge",
            Request::Delete { .. } => "delete",
            Request::RemoveDeleted { .. } => "remove_deleted",
            Request::Discard => "discard",
            Request::Release => "release",
            Request::Close => "close",
        }
    }
}
