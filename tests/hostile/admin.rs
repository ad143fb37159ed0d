//! Who may look at the admin listener.

use std::{fs, process::Command};

use crate::support::{
    BINARY, Cluster, Options,
    http::{Client, get_plain},
    path,
    session::user_token,
    wait_for,
};

#[test]
fn only_the_admin_token_opens_the_pages() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("admin-token");
    fs::write(&file, "a-token-for-operators\n").unwrap();
    let mut cluster = Cluster::start(Options { sites: Vec::new(), ..Options::default() });
    let config = fs::read_to_string(cluster.primary.config()).unwrap();
    let config = config.replace("[admin]\n", &format!("[admin]\ntoken_file = '{}'\n", path(&file)));
    fs::write(cluster.primary.config(), config).unwrap();
    cluster.primary.kill();
    cluster.primary.start();

    let (admin, client) = (cluster.primary.admin(), Client::plain());
    let pull = format!("Bearer {}", user_token(&cluster, &["team/app"]));
    let given: [Option<&str>; 8] = [
        None,
        Some("Bearer "),
        Some("Bearer wrong"),
        Some("Bearer a-token-for-operator"),
        Some("Bearer a-token-for-operatorsx"),
        Some("a-token-for-operators"),
        Some("Basic YTphLXRva2VuLWZvci1vcGVyYXRvcnM="),
        Some(&pull),
    ];
    for target in [
        "/metrics",
        "/v1/status",
        "/v1/sites",
        "/v1/live",
        "/v1/history",
        "/v1/events",
        "/v1/events?follow",
        "/v1/status?token=a-token-for-operators",
    ] {
        for authorization in given {
            let headers: Vec<(&str, &str)> =
                authorization.map(|value| ("Authorization", value)).into_iter().collect();
            let response = client.get(&admin, target, &headers);
            assert_eq!(response.status, 401, "{target} with {authorization:?}");
            assert!(!response.text().contains("a-token"), "{}", response.text());
        }
    }
    // The dashboard's own files are the program's, and know nothing of the node.
    for target in ["/healthz", "/readyz", "/", "/dashboard/app.js"] {
        assert_eq!(get_plain(&admin, target).unwrap().0, 200, "{target}");
    }
    let headers = [("Authorization", "Bearer a-token-for-operators")];
    for (method, target) in [
        ("POST", "/v1/gc"),
        ("POST", "/v1/prefetch?ref=team/app"),
        ("POST", "/v1/sites?site=goa"),
        ("DELETE", "/v1/sites?site=goa"),
    ] {
        for authorization in [None, Some(("Authorization", pull.as_str()))] {
            let headers: Vec<_> = authorization.into_iter().collect();
            assert_eq!(client.send(&admin, method, target, &headers, b"").status, 401, "{method} {target}");
        }
    }
    for (method, target, status) in [
        ("POST", "/v1/sites", 400),
        ("POST", "/v1/sites?site=goa&hours=100000", 400),
        ("POST", "/v1/sites?site=goa", 409),
        ("DELETE", "/v1/sites?site=goa", 404),
    ] {
        let answer = client.send(&admin, method, target, &headers, b"");
        assert_eq!(answer.status, status, "{method} {target}: {}", answer.text());
        let from_a_page = [headers[0], ("Origin", "https://elsewhere.example")];
        assert_eq!(client.send(&admin, method, target, &from_a_page, b"").status, 403, "{method} {target}");
    }
    let prefetch = client.send(&admin, "POST", "/v1/prefetch?ref=team/app", &headers, b"");
    assert_eq!(prefetch.status, 400, "a primary copies nothing: {}", prefetch.text());
    for target in ["/metrics", "/v1/status", "/v1/events"] {
        assert_eq!(client.get(&admin, target, &headers).status, 200);
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let response = client.send(&admin, method, target, &headers, b"");
            assert_eq!(response.status, 405, "{method} {target}");
        }
    }
    let status = |arguments: &[&str]| {
        Command::new(BINARY).args(["status", "--json", "--admin", &admin]).args(arguments).output().unwrap()
    };
    let refused = status(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("401"), "{refused:?}");
    assert!(status(&["--token-file", path(&file)]).status.success());
    wait_for("the log", || (!cluster.primary.log().is_empty()).then_some(()));
    assert!(!cluster.primary.log().contains("a-token-for-operators"));
}

#[test]
fn an_admin_listener_for_everybody_needs_a_token() {
    let cluster = Cluster::start(Options { sites: Vec::new(), ..Options::default() });
    let config = fs::read_to_string(cluster.primary.config()).unwrap();
    let open = config.replace(&format!("listen = '{}'", cluster.primary.admin()), "listen = '0.0.0.0:0'");
    assert_ne!(open, config);
    let file = cluster.dir.path().join("open.toml");
    fs::write(&file, open).unwrap();
    let output = Command::new(BINARY).args(["config", "check", path(&file)]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("admin.listen") && said.contains("admin.token_file"), "{said}");
    let empty = cluster.dir.path().join("empty");
    fs::write(&empty, "\n").unwrap();
    let config = config.replace("[admin]\n", &format!("[admin]\ntoken_file = '{}'\n", path(&empty)));
    fs::write(&file, config.replace(&cluster.primary.ip.to_string(), "127.255.255.252")).unwrap();
    let mut cluster = cluster;
    cluster.primary.kill();
    let output = Command::new(BINARY).args(["primary", "--config", path(&file)]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("admin.token_file"), "{output:?}");
}
