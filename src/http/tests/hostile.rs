use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;

/// Sends one raw request line over a socket; the status.
async fn raw(primary: &Primary, token: &str, line: &str) -> u16 {
    let address = primary.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("{line}: {answer}"))
}

#[tokio::test]
async fn names_that_are_none_touch_nothing() {
    let primary = Primary::start().await;
    let token = primary.token(&["team/app"], Actions::ALL);
    push_image(&primary, &token, "team/app", "one", "").await;
    let digest = Digest::sha256(b"one");
    for line in [
        "GET /v2/../../etc/passwd/manifests/one".to_owned(),
        "GET /v2/team/../team/app/manifests/one".to_owned(),
        "GET /v2/%2e%2e/manifests/one".to_owned(),
        "GET /v2/team%2fapp/manifests/one".to_owned(),
        "GET /v2/team%2Fapp/blobs/%2e%2e".to_owned(),
        "GET /v2/team/app%00/manifests/one".to_owned(),
        "GET /v2/TEAM/app/manifests/one".to_owned(),
        "GET /v2/t%C3%A4am/app/manifests/one".to_owned(),
        "GET /v2/team/app/manifests/..".to_owned(),
        "GET /v2/team/app/manifests/one%2f..".to_owned(),
        "GET /v2/team/app/manifests/sha256:../../../etc/passwd".to_owned(),
        "GET /v2/team/app/blobs/sha256:..%2f..%2fetc%2fpasswd".to_owned(),
        format!("GET /v2/team/app/blobs/{}", digest.to_string().to_uppercase()),
        "GET /v2/team/app/blobs/uploads/../../../x".to_owned(),
        "PATCH /v2/team/app/blobs/uploads/..%2f..%2fx".to_owned(),
        "PUT /v2/team/app/manifests/%2e%2e".to_owned(),
        "DELETE /v2/team/app/blobs/..".to_owned(),
        "POST /v2/../blobs/uploads/".to_owned(),
        "GET /v2/team//app/manifests/one".to_owned(),
        "GET /v2/team/app/manifests/one/".to_owned(),
        "GET //v2/team/app/manifests/one".to_owned(),
        "GET /etc/passwd".to_owned(),
        "GET *".to_owned(),
        format!("GET /v2/{}/manifests/one", "a".repeat(300)),
    ] {
        let status = raw(&primary, &token, &line).await;
        assert!(matches!(status, 400 | 404), "{line}: {status}");
    }
    assert_eq!(raw(&primary, &token, "GET /v2/team/app/manifests/one").await, 200);
}

#[tokio::test]
async fn methods_and_headers_that_make_no_sense() {
    let primary = Primary::start().await;
    let token = primary.token(&["team/app"], Actions::ALL);
    let wrong = primary.ask(ask("POST", "/v2/team/app/manifests/one").by(&token)).await;
    wrong.refused(405, "UNSUPPORTED");
    assert_eq!(wrong.header("allow"), "GET, HEAD, PUT, DELETE");
    let get = || ask("GET", "/v2/team/app/manifests/one").by(&token);
    primary.ask(get().with("outport-min-offset", "yesterday")).await.refused(400, "UNSUPPORTED");
    primary.ask(get().with("outport-min-offset", "0.0")).await.refused(404, "NAME_UNKNOWN");
    primary.ask(ask("GET", "/v2/x/blobs/sha256:1").by(&token)).await.refused(400, "DIGEST_INVALID");
    primary.ask(ask("GET", "/v2/X/tags/list").by(&token)).await.refused(400, "NAME_INVALID");
    primary.ask(ask("GET", "/").by(&token)).await.refused(404, "NOT_FOUND");
    for authorization in ["Bearer", "Digest x", "Bearer a b", "Negotiate", ""] {
        let refused = primary.ask(ask("GET", "/v2/").by(authorization)).await;
        refused.refused(401, "UNAUTHORIZED");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_what_came() {
    let primary = Primary::start().await;
    let token = primary.token(&["team/app"], Actions::ALL);
    let started = primary.ask(ask("POST", "/v2/team/app/blobs/uploads/").by(&token)).await.is(202);
    let path = primary.path_of(started.location());
    let mut stream = TcpStream::connect(primary.url.strip_prefix("http://").unwrap()).await.unwrap();
    let half = format!("PATCH {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhello");
    stream.write_all(half.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let rest = ask("PUT", format!("{path}&digest={}", Digest::sha256(b"hello world")));
    primary.ask(rest.with("content-range", "5-10").body(" world")).await.is(201);
}

#[tokio::test]
async fn a_refused_body_does_not_hide_the_refusal() {
    let primary = Primary::start().await;
    let mut stream = TcpStream::connect(primary.url.strip_prefix("http://").unwrap()).await.unwrap();
    let length = 3 * 1024 * 1024;
    let head =
        format!("PUT /v2/team/app/manifests/one HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; length]).await.unwrap();
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 401").count(), 2, "{answers}");
}

#[tokio::test]
async fn nobody_is_asked_to_continue_with_what_is_not_wanted() {
    let primary = Primary::start().await;
    let site = primary.secondary(PushMode::Redirect);
    let token = primary.token(&["team/app"], Actions::ALL);
    let (client, server) = sockets().await;
    let api = site.api.clone();
    let served = tokio::spawn(async move {
        let service = hyper::service::service_fn(move |request| {
            let api = api.clone();
            async move {
                Ok::<_, Infallible>(api.answer(request, Connection::new(([127, 0, 0, 1], 1).into())).await)
            }
        });
        let io = hyper_util::rt::TokioIo::new(server);
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    });
    let mut client = client;
    let head = format!(
        "PUT /v2/team/app/manifests/one HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 307"), "{answer}");
    served.await.unwrap();
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}
