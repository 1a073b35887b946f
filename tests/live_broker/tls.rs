//! TLS against a real broker with an authority made for the test: with a password, and with a certificate in its place.

use std::path::PathBuf;
use std::sync::Arc;

use longshore::broker::settings::BrokerSettings;
use longshore::broker::tls::{ClientFiles, TlsFiles};
use longshore::broker::topology::EVENTS_EXCHANGE;
use longshore::broker::{Broker, WantedJobs};
use tokio::time::timeout;

use crate::authority::Authority;
use crate::contract::broker::{job, next, open_up, some_host};
use crate::rabbit::{Rabbit, free_ports};
use crate::{PATIENCE, blocking};

fn connect(uri: &str, ca: Option<PathBuf>, client: Option<ClientFiles>) -> Arc<dyn Broker> {
    let mut settings = BrokerSettings::new(uri.parse().unwrap(), "tls");
    settings.tls = TlsFiles { ca, client };
    longshore::broker::connect(settings).unwrap()
}

/// Why a connection is refused, causes and all.
async fn refusal(broker: Arc<dyn Broker>) -> String {
    let Err(error) = broker.subscribe(EVENTS_EXCHANGE, &["#".to_owned()]).await else { panic!("it let us in") };
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Publishes a job and reads it.
async fn a_job_passes(broker: &dyn Broker) {
    let host = some_host();
    let mut session = open_up(broker, &host).await;
    session.want_jobs(WantedJobs::All);
    broker.publisher().publish(job(&host, b"job")).await.unwrap();
    let delivery = next(session.as_mut()).await;
    assert_eq!(delivery.properties.user_id.as_deref(), Some("kvm-07"), "the broker vouches for who we are");
    assert!(delivery.settle.ack().await);
    session.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_and_we_prove_who_we_are() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (Authority::make(folder.path(), "ours"), Authority::make(folder.path(), "others"));
    let server = ours.sign("127.0.0.1", "subjectAltName=IP:127.0.0.1");
    let known = ours.sign("kvm-07", "extendedKeyUsage=clientAuth");
    let unknown = ours.sign("nobody", "extendedKeyUsage=clientAuth");
    let [port] = free_ports();
    let conf = ours.broker_conf(port, &server);
    let rabbit = blocking(move || {
        let rabbit = Rabbit::start_with(&conf, &["rabbitmq_auth_mechanism_ssl"]);
        rabbit.ctl(&["add_user", "kvm-07", "pw"]);
        rabbit.ctl(&["set_permissions", "kvm-07", ".*", ".*", ".*"]);
        rabbit
    })
    .await;
    let with_password = format!("amqps://kvm-07:pw@127.0.0.1:{port}/%2f");
    let by_certificate = format!("amqps://kvm-07@127.0.0.1:{port}/%2f");

    let patient = async {
        a_job_passes(connect(&with_password, Some(ours.ca()), None).as_ref()).await;
        a_job_passes(connect(&by_certificate, Some(ours.ca()), Some(known.clone())).as_ref()).await;
        for ca in [None, Some(others.ca())] {
            let text = refusal(connect(&with_password, ca, None)).await;
            assert!(text.contains("UnknownIssuer"), "{text}");
        }
        let elsewhere = with_password.replace("127.0.0.1", "localhost");
        let text = refusal(connect(&elsewhere, Some(ours.ca()), None)).await;
        assert!(text.contains("NotValidForName") || text.contains("not valid for name"), "{text}");
        let by_nobody = by_certificate.replace("kvm-07", "nobody");
        let text = refusal(connect(&by_nobody, Some(ours.ca()), Some(unknown))).await;
        assert!(text.contains("ACCESS_REFUSED"), "{text}");
        // Of another authority: the broker does not believe it.
        let forged = others.sign("kvm-07", "extendedKeyUsage=clientAuth");
        refusal(connect(&by_certificate, Some(ours.ca()), Some(forged))).await;
    };
    timeout(PATIENCE, patient).await.expect("a connection hangs");
    blocking(move || drop(rabbit)).await;
}
