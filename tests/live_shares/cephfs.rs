//! On CephFS: a cluster's own kinds of refusal, and what the mover makes of them.

use super::*;

const QUOTA_BYTES: u64 = 16 << 20;

fn monitor() -> String {
    variable("LONGSHORE_LAB_CEPH_MONITOR")
}

#[tokio::test]
async fn also_by_the_second_protocol_a_mounted_share_runs_nothing_and_follows_no_link() {
    let address = format!("{}:/good", variable("LONGSHORE_LAB_CEPH_MONITOR_V2"));
    let remote = Remote::on(RepositoryType::Ceph, &address, "ms_mode=prefer-crc", "ceph/good");
    runs_nothing_and_follows_no_link(&remote).await;
}

#[tokio::test]
async fn what_an_operator_gets_wrong_has_its_own_code() {
    let remote = Remote::ceph();
    let (right, monitor) = (remote.repository(), monitor());
    let (name, anothers) = (variable("LONGSHORE_LAB_CEPH_USER"), variable("LONGSHORE_LAB_CEPH_ADMIN_SECRET"));
    let by =
        |file: &str, text: String| Repository { credentials: Some(remote.credentials(file, &text)), ..right.clone() };
    let wrong = |path: &str, options: &str| Repository {
        credentials: right.credentials.clone(),
        ..repository(RepositoryType::Ceph, &format!("{monitor}:{path}"), options, right.id)
    };
    let wrong = vec![
        (by("anothers", format!("name={name}\nsecret={anothers}\n")), Code::MountDenied),
        (by("no-key", format!("name={name}\nsecret=no key\n")), Code::CredentialsUnreadable),
        (Repository { credentials: None, ..right.clone() }, Code::MountDenied),
        (wrong("/good/nowhere", ""), Code::RepositoryNotFound),
        (wrong("/elsewhere", ""), Code::MountDenied),
        (wrong("/good", "nosuchoption"), Code::InvalidMountOption),
    ];
    remote.refuses(wrong).await;
}

#[tokio::test]
async fn a_quota_is_the_room_that_there_is() {
    let remote = Remote::ceph();
    let set_quota = "import os, sys; os.setxattr(sys.argv[1], 'ceph.quota.max_bytes', sys.argv[2].encode())";
    let python = Command::new("/usr/bin/python3")
        .args(["-ISc", set_quota])
        .arg(&remote.served)
        .arg(QUOTA_BYTES.to_string())
        .status();
    assert!(python.unwrap().success());
    let mut mover = started(&remote, "opens").await;
    let open =
        |need_bytes| Request::Open { repository: remote.repository(), same_device_ok: false, need_bytes, writer: None };
    let failure = mover.ask(open(QUOTA_BYTES + 1), SOON).await.unwrap_err();
    assert_eq!(failure.code, Code::RepositoryFull, "{failure:#}");
    let Reply::Opened { free_bytes, .. } = mover.ask(open(1), SOON).await.unwrap() else { panic!("not opened") };
    assert!(free_bytes <= QUOTA_BYTES, "{free_bytes}");
    mover.stop().await.unwrap();
    assert!(!remote.is_busy());
}

#[tokio::test]
async fn a_monitor_that_says_nothing_is_given_up_and_meanwhile_nobody_is_shown_the_secret() {
    let remote = Remote::ceph();
    let secret = variable("LONGSHORE_LAB_CEPH_SECRET");
    let mut mover = opened(&remote, "secret").await;
    assert!(remote.is_busy());
    for shown in ["mountinfo", "cmdline"].into_iter().flat_map(shown_of_processes) {
        assert!(!shown.contains(&secret), "{shown}");
    }
    mover.stop().await.unwrap();

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("{}:/good", silent.local_addr().unwrap());
    let hangs = Repository {
        credentials: remote.repository().credentials,
        ..repository(RepositoryType::Ceph, &address, "mount_timeout=5", remote.repository.id)
    };
    let mut opening = Box::pin(remote.open(hangs));
    let looking = eventually("the mount helper is there", || {
        let lines = shown_of_processes("cmdline");
        for line in &lines {
            assert!(!line.contains(&secret), "{line}");
        }
        lines.iter().any(|line| line.contains("mount.ceph") && line.contains(&address))
    });
    tokio::select! {
        (_, answer) = &mut opening => panic!("the helper was not seen: {answer:?}"),
        () = looking => {}
    }
    let (mut mover, answer) = opening.await;
    let failure = answer.unwrap_err();
    assert_eq!(failure.code, Code::MountTimedOut, "{failure:#}");
    mover.stop().await.unwrap();
    assert!(!remote.is_busy());
}
