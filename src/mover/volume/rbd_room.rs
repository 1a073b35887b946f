//! What a new RBD image takes of its pools, and whether they have it. Pure.
//!
//! It is what is surely taken: the data that there is at least, without the holes in objects, which count for a quota, and which nobody knows
//! before the image is written. What a pool has is known as little, so that one that is refused would not have fitted, with what is to be spared; and one
//! that is not may still fill its pool, which is seen amid the writing.

use super::{Amount, Room, Unit};
use crate::mover::rbd::{Info, PoolRoom};

/// How an image is laid out where it does not say so.
const OBJECT_BYTES: u64 = 4 * 1024 * 1024;

/// What an image has besides its data: its name, header and map, at most.
const RECORD_BYTES: u64 = 1024 * 1024;
/// The same as objects: also those of its pool that the first image in it makes, and a removal.
const RECORD_OBJECTS: u64 = 16;

/// A pool of the cluster of that name.
pub(super) struct Pool<'p> {
    pub name: &'p str,
    pub cluster: &'p str,
    pub room: PoolRoom,
}

/// What an image takes of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needed {
    bytes: u64,
    objects: u64,
}

impl Needed {
    /// For what is known of any image.
    pub const RECORD: Self = Self { bytes: RECORD_BYTES, objects: RECORD_OBJECTS };

    /// For the data of one that is laid out like `old`.
    pub fn of(data: &Amount, old: &Info) -> Self {
        let object_bytes = old.object_bytes().unwrap_or(OBJECT_BYTES).max(1);
        let objects = data.least.div_ceil(object_bytes).saturating_add(RECORD_OBJECTS);
        Self { bytes: Room::with_margin(data.least), objects }
    }

    /// Held against what the pool is known to have.
    pub fn rooms(self, pool: &Pool<'_>) -> Vec<Room> {
        let Pool { name, cluster, room } = pool;
        let of = |what: &str, free: Option<u64>, needed: u64, unit: Unit| {
            let shown = format!("{what}RBD pool {name}");
            let storage = format!("{unit:?} of the {shown} of {cluster}");
            Some(Room { storage, shown, free: free?, needed, unit })
        };
        let quota = "quota of the ";
        let all = [
            of("", room.bytes, self.bytes, Unit::Bytes),
            of(quota, room.quota_bytes, self.bytes, Unit::Bytes),
            of(quota, room.quota_objects, self.objects, Unit::Objects),
        ];
        all.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::json;

    use super::super::has_room;
    use super::*;
    use crate::mover::image::Blocks;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;

    #[test]
    fn an_image_needs_its_data_in_as_few_objects_as_hold_it() {
        let nothing = Arc::new(Blocks::new(0).unwrap());
        let needed = |bytes, info| Needed::of(&Amount::of(bytes, true, &nothing), &Info::said(info));
        let plain = needed(9 * MIB, json!({"object_size": 4 * MIB}));
        assert_eq!((plain.bytes, plain.objects), (Room::with_margin(9 * MIB), 3 + RECORD_OBJECTS));
        assert_eq!(needed(9 * MIB, json!({})), plain);
        assert_eq!(needed(9 * MIB, json!({"order": 20})).objects, 9 + RECORD_OBJECTS);
        assert_eq!(needed(0, json!({})).objects, RECORD_OBJECTS);
        let of_chain = Amount::of(9 * MIB, false, &nothing);
        assert_eq!(Needed::of(&of_chain, &Info::said(json!({}))), needed(0, json!({})), "it may be as little");
    }

    #[test]
    fn a_pool_has_room_where_all_that_is_known_of_it_says_so_for_all_volumes_together() {
        let needed = Needed { bytes: 10, objects: 3 };
        let refused = |bytes, quota_bytes, quota_objects, volumes| {
            let room = PoolRoom { bytes, quota_bytes, quota_objects };
            let pool = Pool { name: "volumes", cluster: "one", room };
            let rooms = (0..volumes).flat_map(|_| needed.rooms(&pool)).map(Ok);
            has_room(rooms).err().map(|failure| failure.text)
        };
        assert_eq!(refused(None, None, None, 9), None);
        assert_eq!(refused(Some(20), Some(20), Some(6), 2), None);
        let full = "`RBD pool volumes` has 19 bytes free where the new volumes need 20";
        assert_eq!(refused(Some(19), Some(20), Some(6), 2).unwrap(), full);
        let full = "`quota of the RBD pool volumes` has 19 bytes free where the new volumes need 20";
        assert_eq!(refused(Some(20), Some(19), None, 2).unwrap(), full);
        let full = "`quota of the RBD pool volumes` has 5 objects free where the new volumes need 6";
        assert_eq!(refused(Some(20), None, Some(5), 2).unwrap(), full);
    }
}
