use super::*;

#[tokio::test]
async fn the_ping_teaches_where_tokens_are() {
    let primary = Primary::start().await;
    let site = primary.secondary(PushMode::Redirect);
    for api in [&primary.api, &site.api] {
        let answer = ask("GET", "/v2/").of(api).await.is(401);
        assert_eq!(
            answer.header("www-authenticate"),
            format!("Bearer realm=\"{}/token\",service=\"registry.example.com\"", primary.url)
        );
        answer.refused(401, "UNAUTHORIZED");
        let refused = ask("GET", "/v2/").by("Bearer x.y.z").of(api).await.is(401);
        assert!(refused.header("www-authenticate").ends_with(",error=\"invalid_token\""));
        let password = ask("GET", "/v2/").by(&basic("demo", "s3cret")).of(api).await.is(401);
        assert!(!password.header("www-authenticate").contains("error="));
        let token = primary.token(&[], Actions::PULL);
        let welcome = ask("GET", "/v2/").by(&token).of(api).await.is(200);
        assert_eq!(welcome.header("docker-distribution-api-version"), "registry/2.0");
    }
}

#[tokio::test]
async fn a_site_that_knows_nothing_yet_says_so() {
    let primary = Primary::start().await;
    let mut site = primary.secondary(PushMode::Redirect);
    let token = primary.token(&["team/app"], Actions::ALL);
    let api = Arc::get_mut(&mut site.api).unwrap();
    api.addresses = SharedAddresses::default();
    ask("GET", "/v2/").of(&site.api).await.refused(503, "UNAVAILABLE");
    ask("POST", "/v2/team/app/blobs/uploads/").by(&token).of(&site.api).await.refused(503, "UNAVAILABLE");
    let api = Arc::get_mut(&mut site.api).unwrap();
    api.authenticator = Arc::new(ignorant(&primary.clock));
    let answer = ask("GET", "/v2/").by(&token).of(&site.api).await;
    answer.refused(503, "UNAVAILABLE");
    assert_eq!(answer.header("retry-after"), "2");
}

#[tokio::test]
async fn tokens_by_get_and_by_post() {
    let primary = Primary::start().await;
    let scope = "scope=repository%3Ateam%2Fapp%3Apull%2Cpush";
    let get = |authorization: Option<String>| {
        let ask = ask("GET", format!("/token?service={SERVICE}&{scope}"));
        match authorization {
            Some(value) => ask.by(&value),
            None => ask,
        }
    };
    let post = |form: &str| {
        ask("POST", "/token").with("content-type", "application/x-www-form-urlencoded").body(form.to_owned())
    };
    let may_push = async |answer: Answer| {
        let token = answer.is(200).json()["token"].as_str().unwrap().to_owned();
        let started = ask("POST", "/v2/team/app/blobs/uploads/").by(&format!("Bearer {token}"));
        primary.ask(started).await.status == StatusCode::ACCEPTED
    };
    assert!(may_push(primary.ask(get(Some(basic("demo", "s3cret")))).await).await);
    assert!(!may_push(primary.ask(get(None)).await).await);
    assert!(!may_push(primary.ask(get(Some(basic("", "")))).await).await);
    let form =
        format!("grant_type=password&service={SERVICE}&client_id=x&{scope}&username=demo&password=s3cret");
    assert!(may_push(primary.ask(post(&form)).await).await);
    let offline = primary.ask(post(&format!("{form}&access_type=offline"))).await.is(200);
    assert_eq!(offline.header("cache-control"), "no-store");
    let refresh = offline.json()["refresh_token"].as_str().unwrap().to_owned();
    let form = format!("grant_type=refresh_token&service={SERVICE}&{scope}&refresh_token={refresh}");
    assert!(may_push(primary.ask(post(&form)).await).await);

    let wrong = primary.ask(get(Some(basic("demo", "wrong")))).await;
    wrong.refused(401, "UNAUTHORIZED");
    assert!(wrong.header("www-authenticate").starts_with("Basic "));
    primary.ask(get(Some("Bearer x".to_owned()))).await.refused(400, "UNSUPPORTED");
    primary.ask(post("grant_type=magic")).await.refused(400, "UNSUPPORTED");
    primary.ask(post("")).await.refused(400, "UNSUPPORTED");
    primary.ask(ask("POST", "/token").body("{}")).await.refused(400, "UNSUPPORTED");
    primary.ask(post(&"a".repeat(100_000))).await.refused(413, "SIZE_INVALID");
    primary.ask(ask("GET", "/token?service=other")).await.refused(400, "UNSUPPORTED");
}

#[tokio::test]
async fn too_narrow_a_token_is_asked_to_be_broader() {
    let primary = Primary::start().await;
    let narrow = primary.token(&["team/app"], Actions::PULL);
    for (method, path, scope) in [
        ("POST", "/v2/team/app/blobs/uploads/", "repository:team/app:pull,push"),
        ("PUT", "/v2/team/app/manifests/1", "repository:team/app:pull,push"),
        ("DELETE", "/v2/team/app/manifests/1", "repository:team/app:delete"),
        ("GET", "/v2/team/other/manifests/1", "repository:team/other:pull"),
        ("GET", "/v2/_catalog", "registry:catalog:*"),
    ] {
        let answer = primary.ask(ask(method, path).by(&narrow)).await.is(401);
        let challenge = answer.header("www-authenticate");
        assert!(
            challenge.contains(&format!("scope=\"{scope}\",error=\"insufficient_scope\"")),
            "{challenge}"
        );
    }
    let push = primary.token(&["team/app"], Actions::PULL_PUSH);
    let digest = Digest::sha256(b"x");
    let mount = format!("/v2/team/app/blobs/uploads/?mount={digest}&from=base");
    let answer = primary.ask(ask("POST", mount).by(&push)).await.is(401);
    assert!(answer.header("www-authenticate").contains("repository:team/app:pull,push repository:base:pull"));
}
