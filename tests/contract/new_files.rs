//! Files that are made of a backup where nothing is: the same questions, put to the real mover and to its fake.

use std::path::{Path, PathBuf};

use longshore::failure::Code;
use longshore::host::mover::Mover;
use longshore::model::id::InstanceId;
use longshore::model::instance::ImageFormat;
use longshore::model::manifest::Manifest;
use longshore::mover::protocol::{NewContent, NewFile, NewFiles, Reply, Request, ToMake, ToWeigh, Weighed};

use super::{SOON, Stands, World, done, opened, published, refused, restored};

/// The backup's disk under each of those names, beside `volume`.
pub fn new_files(manifest: &Manifest, volume: &Path, names: &[&str]) -> NewFiles {
    let disk = &manifest.disks[0];
    let content = NewContent::Disk {
        disk: disk.target.clone(),
        virtual_bytes: disk.virtual_bytes,
        content_root: disk.content_root.clone(),
        format: ImageFormat::Qcow2,
    };
    let file = |name: &&str| NewFile {
        content: content.clone(),
        path: volume.with_file_name(name),
        fresh: volume.with_file_name(format!("{name}.new")),
        directory: None,
        made: None,
    };
    let roots = vec![volume.parent().unwrap().to_owned()];
    NewFiles { roots, files: names.iter().map(file).collect(), vacant: Vec::new() }
}

pub fn make(manifest: &Manifest, new: &NewFiles) -> Request {
    Request::MakeNew { instance: manifest.instance_id, backup: manifest.backup_id, new: new.clone() }
}

/// Made, and known by what is told of them.
pub async fn made(mover: &mut Box<dyn Mover>, manifest: &Manifest, new: &mut NewFiles) {
    let reply = mover.ask(Request::LookAtNew { new: new.clone() }, SOON).await;
    let Ok(Reply::Places { directories }) = reply else { panic!("{reply:?}") };
    let reply = mover.ask(make(manifest, new), SOON).await;
    let Ok(Reply::MadeNew { disks, inodes }) = reply else { panic!("{reply:?}") };
    for ((file, directory), inode) in new.files.iter_mut().zip(directories).zip(inodes) {
        (file.directory, file.made) = (Some(directory), Some(inode));
    }
    assert!(disks.iter().all(|disk| disk.content_root == manifest.disks[0].content_root), "{disks:?}");
}

fn stand(world: &dyn World, paths: impl Iterator<Item = PathBuf>) -> Vec<Stands> {
    paths.map(|path| world.stands(&path)).collect()
}

fn names(new: &NewFiles) -> impl Iterator<Item = PathBuf> {
    new.files.clone().into_iter().map(|file| file.path)
}

fn fresh(new: &NewFiles) -> impl Iterator<Item = PathBuf> {
    new.files.clone().into_iter().map(|file| file.fresh)
}

const NOTHING: [Stands; 2] = [Stands::Nothing, Stands::Nothing];
const ALL: [Stands; 2] = [Stands::Restored, Stands::Restored];

pub async fn new_files_get_their_names_all_at_once_and_lose_them_again(world: &dyn World) {
    let volume = world.volume();
    let (mut mover, manifest) = published(world, "new-files").await;
    let mut new = new_files(&manifest, &volume, &["one.qcow2", "two.qcow2"]);
    let others = Manifest { instance_id: InstanceId::draw(), ..manifest.clone() };
    assert_eq!(refused(&mut mover, make(&others, &new)).await.code, Code::Internal, "its lease is not held");
    for _twice in 0..2 {
        made(&mut mover, &manifest, &mut new).await;
    }
    assert_eq!(stand(world, names(&new)), NOTHING);
    done(&mut mover, Request::Compare).await;
    for _twice in 0..2 {
        done(&mut mover, Request::PlaceNew { new: new.clone() }).await;
        assert_eq!(stand(world, names(&new)), ALL);
        assert_eq!(stand(world, fresh(&new)), NOTHING);
    }
    done(&mut mover, Request::RemoveNew { new: new.clone() }).await;
    assert_eq!(stand(world, names(&new)), ALL, "what has its name stays");
    // By another one, without a repository.
    mover.stop().await.unwrap();
    let mut mover = opened(world, "another").await;
    for _twice in 0..2 {
        done(&mut mover, Request::TakeBackNew { new: new.clone() }).await;
        assert_eq!(stand(world, names(&new)), NOTHING);
        assert_eq!(stand(world, fresh(&new)), ALL);
    }
    for _twice in 0..2 {
        done(&mut mover, Request::RemoveNew { new: new.clone() }).await;
        assert_eq!(stand(world, names(&new)), NOTHING);
        assert_eq!(stand(world, fresh(&new)), NOTHING);
    }
    for request in [Request::PlaceNew { new: new.clone() }, Request::TakeBackNew { new }] {
        let reply = mover.ask(request, SOON).await;
        assert!(matches!(reply, Ok(Reply::NotKnown { .. })), "what is not seen may be anywhere: {reply:?}");
    }
    assert_eq!(world.stands(&volume), Stands::Old);
    mover.stop().await.unwrap();
}

pub async fn no_new_file_is_made_where_something_is_or_outside_of_the_roots(world: &dyn World) {
    let volume = world.volume();
    let name = volume.file_name().unwrap().to_str().unwrap();
    let (mut mover, manifest) = published(world, "taken").await;
    let taken = new_files(&manifest, &volume, &["one.qcow2", name]);
    assert_eq!(refused(&mut mover, make(&manifest, &taken)).await.code, Code::VolumeExists);
    assert_eq!(refused(&mut mover, Request::LookAtNew { new: taken.clone() }).await.code, Code::VolumeExists);
    done(&mut mover, Request::RemoveNew { new: taken }).await;
    let mut outside = new_files(&manifest, &volume, &["one.qcow2"]);
    outside.roots = vec!["/nowhere/else".into()];
    assert_eq!(refused(&mut mover, make(&manifest, &outside)).await.code, Code::PathNotAllowed);
    done(&mut mover, Request::RemoveNew { new: outside }).await;
    assert_eq!(
        (world.stands(&volume), world.stands(&volume.with_file_name("one.qcow2"))),
        (Stands::Old, Stands::Nothing)
    );

    world.damage(&manifest);
    let new = new_files(&manifest, &volume, &["one.qcow2"]);
    assert_eq!(refused(&mut mover, make(&manifest, &new)).await.code, Code::BackupDamaged);
    done(&mut mover, Request::RemoveNew { new }).await;
    assert_eq!(world.stands(&volume.with_file_name("one.qcow2")), Stands::Nothing);
    mover.stop().await.unwrap();
}

pub async fn records_are_read(world: &dyn World) {
    let (mut mover, manifest) = published(world, "records").await;
    let (instance, backup) = (manifest.instance_id, manifest.backup_id);
    let known = &manifest.records[0];
    let reply = mover.ask(Request::ReadRecord { instance, backup, file: known.file.clone() }, SOON).await.unwrap();
    let Reply::Record { content } = reply else { panic!("{reply:?}") };
    let hash = blake3::hash(&content).to_hex().to_string();
    assert_eq!((content.len() as u64, &hash), (known.bytes, &known.blake3));
    for file in ["nothing", "vda.qcow2", "../vda.qcow2"] {
        let file = file.to_owned();
        let failure = refused(&mut mover, Request::ReadRecord { instance, backup, file }).await;
        assert_eq!(failure.code, Code::BackupDamaged, "{failure:#}");
    }
    mover.stop().await.unwrap();
}

pub async fn what_was_made_is_known_again_and_nothing_else_is_taken_for_it(world: &dyn World) {
    let volume = world.volume();
    let (mut mover, manifest) = published(world, "known").await;
    let mut new = new_files(&manifest, &volume, &["one.qcow2", "two.qcow2"]);
    let (path, fresh, aside) = (new.files[1].path.clone(), new.files[1].fresh.clone(), volume.with_file_name("aside"));
    // Where somebody else is to make a file there is none, and it is no new one.
    for vacant in [&volume, &path] {
        let taken = NewFiles { vacant: vec![vacant.clone()], ..new.clone() };
        assert_eq!(refused(&mut mover, Request::LookAtNew { new: taken }).await.code, Code::VolumeExists);
    }
    what_would_be_made_is_weighed(&mut mover, &manifest, &volume, &new).await;
    new.vacant = vec![volume.with_file_name("VARS.fd")];
    made(&mut mover, &manifest, &mut new).await;
    assert_eq!(new.files.iter().filter_map(|file| file.made).collect::<std::collections::BTreeSet<_>>().len(), 2);
    assert_eq!(new.files[0].directory, new.files[1].directory);
    let looked = mover.ask(Request::LookAtNew { new: new.clone() }, SOON).await;
    assert!(matches!(looked, Ok(Reply::Places { .. })), "{looked:?}");

    // In a directory that is another one.
    let mut elsewhere = new.clone();
    elsewhere.files.iter_mut().for_each(|file| file.directory = file.directory.map(|inode| inode + 1));
    is_not_known(&mut mover, &elsewhere).await;
    assert_eq!(refused(&mut mover, Request::RemoveNew { new: elsewhere }).await.code, Code::VolumeIo);

    world.rename(&fresh, &aside);
    is_not_known(&mut mover, &new).await;
    world.put(&volume, &path);
    is_not_known(&mut mover, &new).await;
    world.rename(&aside, &fresh);
    let failure = refused(&mut mover, Request::PlaceNew { new: new.clone() }).await;
    assert_eq!(failure.code, Code::VolumeExists, "somebody else has the name");
    done(&mut mover, Request::TakeBackNew { new: new.clone() }).await;
    done(&mut mover, Request::RemoveNew { new: new.clone() }).await;
    assert_eq!(stand(world, fresh_and_path(&new.files[0])), NOTHING);
    assert_eq!((world.stands(&path), world.stands(&fresh)), (Stands::Old, Stands::Nothing));
    mover.stop().await.unwrap();
}

async fn what_would_be_made_is_weighed(mover: &mut Box<dyn Mover>, manifest: &Manifest, volume: &Path, new: &NewFiles) {
    let (instance, backup) = (manifest.instance_id, manifest.backup_id);
    let weigh = |to_make| Request::Weigh { wanted: ToWeigh { instance, backup, to_make } };
    let in_place = |volume: &Path| ToMake::InPlace { volumes: vec![restored(manifest, volume)], keep_previous: false };
    for to_make in [ToMake::New(NewFiles { files: vec![new.files[0].clone()], ..new.clone() }), in_place(volume)] {
        let weighed = mover.ask(weigh(to_make), SOON).await.unwrap();
        let data_bytes = vec![manifest.disks[0].data_bytes];
        assert_eq!(weighed, Reply::Weighed(Weighed { data_bytes, warnings: Vec::new() }));
    }
    let taken = NewFiles { vacant: vec![volume.to_owned()], ..new.clone() };
    assert_eq!(refused(mover, weigh(ToMake::New(taken))).await.code, Code::VolumeExists);
    assert_eq!(refused(mover, weigh(in_place(&volume.with_file_name("gone")))).await.code, Code::VolumeIo);
    let mut unknown = restored(manifest, volume);
    unknown.disk = "vdz".parse().unwrap();
    let unknown = ToMake::InPlace { volumes: vec![unknown], keep_previous: false };
    assert_eq!(refused(mover, weigh(unknown)).await.code, Code::DiskNotFound);
}

fn fresh_and_path(file: &NewFile) -> impl Iterator<Item = PathBuf> {
    [file.fresh.clone(), file.path.clone()].into_iter()
}

async fn is_not_known(mover: &mut Box<dyn Mover>, new: &NewFiles) {
    for request in [Request::PlaceNew { new: new.clone() }, Request::TakeBackNew { new: new.clone() }] {
        let reply = mover.ask(request, SOON).await;
        assert!(matches!(reply, Ok(Reply::NotKnown { .. })), "{reply:?}");
    }
}
