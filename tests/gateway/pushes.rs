//! Uploads on their way through.

use std::time::Duration;

use outport_proto::Digest;

use crate::{
    agreement::direct,
    support::{
        Cluster, Options,
        http::Client,
        registry::Lets,
        session::{Session, absolute, finish},
    },
};

const REPO: &str = "team/app";

fn started() -> Cluster {
    Cluster::start(Options { registry: Some(Lets::Users), sites: vec!["mumbai"], ..Options::default() })
}

#[test]
fn a_body_is_asked_for_once_the_registry_takes_it() {
    let cluster = started();
    let session = Session::user(&cluster, &cluster.primary, &[REPO]);
    let content = b"sent once it was asked for";
    let digest = Digest::sha256(content);
    let (address, target) = absolute(&finish(&session.begin_upload(REPO), &digest)).unwrap();
    let begin = |target: &str| {
        let mut connection = Client::plain().connect(&address).unwrap();
        let head = format!(
            "PUT {target} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            content.len()
        );
        connection.raw(head.as_bytes()).unwrap();
        connection
    };
    let mut connection = begin(&target);
    let mut line = [0; 25];
    let mut read = 0;
    while read < line.len() {
        read += connection.read(&mut line[read..]).unwrap();
    }
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
    connection.raw(content).unwrap();
    let put = connection.receive(false).unwrap();
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(session.get(&format!("/v2/{REPO}/blobs/{digest}")).body, content);

    // One that is refused is not.
    let forged = target.replace("state=", "state=x");
    let refused = begin(&forged).receive_head().unwrap();
    assert_eq!(refused.status, 403);
}

#[test]
fn an_upload_goes_on_after_the_gateway_was_killed() {
    let mut cluster = started();
    let session = Session::user(&cluster, &cluster.primary, &[REPO]);
    let content = vec![7; 3 * 1024 * 1024];
    let (first, second) = content.split_at(1024 * 1024);
    let location = session.begin_upload(REPO);
    let range = format!("0-{}", first.len() - 1);
    let patched = session.send("PATCH", &location, &[("Content-Range", &range)], first);
    assert_eq!(patched.status, 202, "{}", patched.text());
    assert_eq!(patched.header("range"), Some(range.as_str()));
    let location = patched.header("location").unwrap().to_owned();
    cluster.primary.kill();
    cluster.primary.start();
    let status = session.send("GET", &location, &[], b"");
    assert_eq!((status.status, status.header("range")), (204, Some(range.as_str())), "{}", status.text());
    let digest = Digest::sha256(&content);
    let put = session.send("PUT", &finish(&location, &digest), &[], second);
    assert_eq!(put.status, 201, "{}", put.text());
    // A client that did not hear of that asks again.
    let again = session.send("PUT", &finish(&location, &digest), &[], b"");
    assert_eq!(again.status, 201, "{}", again.text());
    // Under a location that leads to the primary alone.
    let theirs = cluster.registry.as_ref().unwrap().address();
    assert!(!location.contains(&theirs) && location.contains(&cluster.primary.registry()), "{location}");
}

#[test]
fn a_registry_that_takes_nothing_is_sent_no_more_than_it_takes() {
    let cluster = started();
    let session = Session::user(&cluster, &cluster.primary, &[REPO]);
    let (address, path) = absolute(&session.begin_upload(REPO)).unwrap();
    crate::support::signal(cluster.registry.as_ref().unwrap().pid(), "STOP");
    let mut connection = Client::plain().connect(&address).unwrap();
    let head = format!("PATCH {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", 1_u64 << 30);
    connection.raw(head.as_bytes()).unwrap();
    let sent = std::thread::spawn(move || {
        let piece = vec![0; 1024 * 1024];
        let mut sent = 0;
        while sent < 512 && connection.raw(&piece).is_ok() {
            sent += 1;
        }
        sent
    });
    // Whatever is taken in by buffers on the way is taken in by then.
    std::thread::park_timeout(Duration::from_secs(2));
    assert!(!sent.is_finished(), "nobody held it up");
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.primary.pid())).unwrap();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    assert!(kib.unwrap() < 128 * 1024, "{kib:?} KiB");
    crate::support::signal(cluster.registry.as_ref().unwrap().pid(), "CONT");
    assert_eq!(sent.join().unwrap(), 512, "and then it goes on");
    assert_eq!(direct(&cluster).get("/v2/").status, 401);
}
