//! Callers whom somebody else knows.

use outport_proto::frame::{AuthMode, Question, RegistryChallenge, Verdict};

use super::*;
use crate::{
    auth::{Judge, JudgeError, Secret, SigningKey, Verdicts},
    fetch::BoxFuture,
};

/// A site of `primary` that lets callers in so.
fn site_with(primary: &Primary, authenticator: Authenticator, mode: &AuthMode) -> Secondary {
    let mut site = primary.secondary(PushMode::Redirect);
    authenticator.learn(mode, SERVICE).unwrap();
    Arc::get_mut(&mut site.api).unwrap().authenticator = Arc::new(authenticator);
    site
}

async fn with_image() -> Primary {
    let primary = Primary::start().await;
    let token = primary.token(&["team/app"], Actions::ALL);
    push_image(&primary, &token, "team/app", "1", "").await;
    primary
}

fn get(name: &str) -> Ask {
    ask("GET", format!("/v2/{name}/manifests/1"))
}

#[tokio::test]
async fn tokens_of_another_service_are_believed_and_clients_are_sent_there() {
    let primary = with_image().await;
    let key = SigningKey::generate().unwrap();
    let jwks = SigningKey::jwks([&key]).unwrap();
    let mode = AuthMode::Token { jwks, issuer: "gitlab-issuer".to_owned(), roots: Vec::new() };
    let mut site = site_with(&primary, ignorant(&primary.clock), &mode);
    // Whatever answers there: without an answer the site would take itself for cut off.
    let realm = format!("{}/jwt/auth", primary.url);
    let elsewhere = Addresses::new(&primary.url, &realm, SERVICE).unwrap();
    Arc::get_mut(&mut site.api).unwrap().addresses = Arc::new(ArcSwapOption::from_pointee(elsewhere));

    let challenged = site.ask(get("team/app")).await.is(401);
    assert_eq!(
        challenged.header("www-authenticate"),
        format!("Bearer realm=\"{realm}\",service=\"{SERVICE}\",scope=\"repository:team/app:pull\"")
    );
    let token = |scope: &str| {
        let access: Access = Scope::parse_list(scope).collect();
        let life = std::time::Duration::from_secs(300);
        let grant = Grant { subject: "ana", access: &access, offset: None, life };
        let issuer = TokenIssuer::new(key.clone(), "gitlab-issuer", SERVICE);
        format!("Bearer {}", issuer.issue(&grant, primary.clock.now()).unwrap().token.expose())
    };
    site.ask(get("team/app").by(&token("repository:team/app:pull"))).await.is(200);
    site.ask(get("team/app").by(&token("repository:team/other:pull"))).await.is(401);
    site.ask(get("team/app").by(&primary.token(&["team/app"], Actions::ALL))).await.is(401);
    let post = ask("POST", "/v2/team/app/blobs/uploads/");
    let led = site.ask(post.by(&token("repository:team/app:pull,push"))).await.is(307);
    assert!(led.location().starts_with(&primary.url));
    site.ask(ask("GET", "/token?service=s").by(&basic("ana", "s3cret"))).await.refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn without_any_check_everybody_may_do_everything() {
    let primary = with_image().await;
    primary.api.authenticator.learn(&AuthMode::Anonymous, "").unwrap();
    let site = site_with(&primary, ignorant(&primary.clock), &AuthMode::Anonymous);
    for api in [&primary.api, &site.api] {
        ask("GET", "/v2/").of(api).await.is(200);
        get("team/app").of(api).await.is(200);
        get("team/app").by(&basic("any", "body")).of(api).await.is(200);
        ask("GET", "/v2/_catalog").of(api).await.is(200);
        ask("HEAD", "/v2/team/app/manifests/1").of(api).await.is(200);
    }
    let led = site.ask(ask("POST", "/v2/team/new/blobs/uploads/")).await.is(307);
    primary.ask(ask("POST", primary.path_of(led.location()))).await.is(202);
    site.ask(ask("GET", "/token")).await.refused(404, "NOT_FOUND");
}

/// Knows ana, who may pull team/app, and bob, who may not; everybody may pull public/app.
struct Registry;

impl Judge for Registry {
    fn judge<'a>(
        &'a self,
        authorization: Option<&'a Secret>,
        question: &'a Question,
    ) -> BoxFuture<'a, Result<Verdict, JudgeError>> {
        let (ana, bob) = (basic("ana", "s3cret"), basic("bob", "hunter2"));
        let who = authorization.map(Secret::expose);
        let is_known = who == Some(&*ana) || who == Some(&*bob);
        Box::pin(std::future::ready(match question {
            Question::Catalog => Err(JudgeError("it is down".to_owned())),
            Question::Repository(repo) if repo.as_str() == "public/app" => Ok(Verdict::Yes),
            _ if !is_known => Ok(Verdict::Unauthorized),
            Question::Repository(repo) if repo.as_str() == "team/app" && who == Some(&*bob) => {
                Ok(Verdict::Denied)
            }
            Question::Repository(repo) if repo.as_str() != "team/app" => Ok(Verdict::Unknown),
            Question::Manifest { .. } => Ok(Verdict::Unknown),
            _ => Ok(Verdict::Yes),
        }))
    }
}

fn delegating(primary: &Primary) -> (Authenticator, AuthMode) {
    let verdicts = Verdicts::new(Arc::new(Registry), primary.clock.clone()).unwrap();
    let verifier = Verifier::new(primary.clock.clone(), Leeway::default());
    let mode = AuthMode::Delegated {
        challenge: Some(RegistryChallenge::Basic { realm: "Registry \"1\"".to_owned() }),
        allow_seconds: 60,
        deny_seconds: 10,
        cached_max: 100,
        revoked: NOW,
    };
    (Authenticator::new(verifier, Some(verdicts)), mode)
}

#[tokio::test]
async fn the_registry_behind_says_who_may() {
    let primary = with_image().await;
    let token = primary.token(&["public/app"], Actions::ALL);
    push_image(&primary, &token, "public/app", "1", "").await;
    let (authenticator, mode) = delegating(&primary);
    let site = site_with(&primary, authenticator, &mode);
    let (ana, bob) = (basic("ana", "s3cret"), basic("bob", "hunter2"));

    let login = site.ask(ask("GET", "/v2/")).await.is(401);
    assert_eq!(login.header("www-authenticate"), r#"Basic realm="Registry \"1\"""#);
    site.ask(ask("GET", "/v2/").by(&ana)).await.is(200);
    site.ask(ask("GET", "/v2/").by(&basic("ana", "wrong"))).await.is(401);
    site.ask(get("team/app").by(&ana)).await.is(200);
    site.ask(get("team/app").by(&bob)).await.refused(403, "DENIED");
    site.ask(get("team/app")).await.is(401);
    site.ask(get("public/app")).await.is(200);
    site.ask(get("team/nothing").by(&ana)).await.refused(404, "MANIFEST_UNKNOWN");
    let nothing = format!("/v2/team/nothing/referrers/{}", outport_proto::Digest::sha256(b"?"));
    let nothing = site.ask(ask("GET", nothing).by(&ana)).await.is(200);
    assert_eq!(nothing.json()["manifests"], serde_json::json!([]));
    let unsaid = site.ask(ask("GET", "/v2/_catalog").by(&ana)).await;
    unsaid.refused(503, "UNAVAILABLE");
    assert!(unsaid.json()["errors"][0]["message"].as_str().unwrap().contains("it is down"));

    // Whether they may push the registry says when it sees it.
    let post = || ask("POST", "/v2/team/app/blobs/uploads/");
    site.ask(post()).await.is(401);
    site.ask(post().by(&basic("ana", "wrong"))).await.is(401);
    for who in [&ana, &bob] {
        let led = site.ask(post().by(who)).await.is(307);
        assert!(led.location().contains("ticket="));
    }
}

#[tokio::test]
async fn without_its_challenge_nobody_is_asked_for_a_password() {
    let primary = with_image().await;
    let (authenticator, mode) = delegating(&primary);
    let AuthMode::Delegated { allow_seconds, deny_seconds, cached_max, revoked, .. } = mode else { panic!() };
    let mode = AuthMode::Delegated { challenge: None, allow_seconds, deny_seconds, cached_max, revoked };
    let site = site_with(&primary, authenticator, &mode);
    site.ask(ask("GET", "/v2/")).await.refused(503, "UNAVAILABLE");
}

#[tokio::test]
async fn made_up_credentials_are_turned_away_before_the_registry_hears_of_them() {
    let primary = with_image().await;
    let (authenticator, mode) = delegating(&primary);
    let site = site_with(&primary, authenticator, &mode);
    let ana = basic("ana", "s3cret");
    site.ask(get("team/app").by(&ana)).await.is(200);
    for number in 0..crate::auth::WRONG_PER_MINUTE {
        site.ask(get("team/app").by(&basic("ana", &number.to_string()))).await.is(401);
    }
    for ask in [get("team/app"), ask("GET", "/v2/"), ask("POST", "/v2/team/app/blobs/uploads/")] {
        let kept_off = site.ask(ask.by(&basic("ana", "again"))).await;
        kept_off.refused(429, "TOOMANYREQUESTS");
        assert_eq!(kept_off.header("retry-after"), "1");
    }
    site.ask(get("team/app").by(&ana)).await.is(200);
    site.ask(get("public/other")).await.is(401);

    // The same before a push at the primary, which would carry them to the registry.
    let (authenticator, mode) = delegating(&primary);
    authenticator.learn(&mode, "").unwrap();
    let question = || Question::Repository("team/app".parse().unwrap());
    for number in 0..crate::auth::WRONG_PER_MINUTE {
        let made_up = basic("ana", &number.to_string());
        let refused = authenticator.writer_at_registry(Some(&made_up), question).await;
        assert!(matches!(refused, Err(crate::auth::Refused::Unauthorized(_))));
    }
    let kept_off = authenticator.writer_at_registry(Some(&basic("ana", "again")), question).await;
    assert!(matches!(kept_off, Err(crate::auth::Refused::TooMany { .. })));
    assert!(authenticator.writer_at_registry(None, question).await.is_ok());
}
