use super::*;
use crate::{
    auth::{Action, Caller, Leeway, Verifier, password},
    clock::ManualClock,
};

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://primary.example.com/token";
const AUDIENCE: &str = "registry.example.com";

struct World {
    directory: tempfile::TempDir,
    clock: Arc<ManualClock>,
    service: TokenService,
    verifier: Verifier,
}

fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(Timestamp::from_secs(NOW));
    let path = directory.path().join("users");
    std::fs::write(&path, format!("demo:{}\n", bcrypt::hash("s3cret", 4).unwrap())).unwrap();
    let users = Arc::new(Users::open(&path, clock.clone()).unwrap());
    let keys = PrimaryKeys::open(&directory.path().join("keys")).unwrap();
    let service = TokenService::new(
        &keys,
        ISSUER,
        AUDIENCE,
        TokenLives::default(),
        AccessRules::public_with_owner("demo"),
        Some(users),
        clock.clone(),
        Arc::new(|| Offset::new(2, 17)),
    )
    .unwrap();
    let verifier = Verifier::new(clock.clone(), Leeway::default());
    verifier.set_keys(keys.jwks(), ISSUER, AUDIENCE).unwrap();
    World { directory, clock, service, verifier }
}

impl World {
    fn users_file(&self) -> std::path::PathBuf {
        self.directory.path().join("users")
    }

    async fn ask(&self, grant: TokenGrant, scopes: &str) -> Result<TokenResponse, TokenServiceError> {
        let request = TokenRequest {
            service: Some(AUDIENCE.to_owned()),
            scopes: Scope::parse_list(scopes).collect(),
            grant,
            offline: true,
        };
        self.service.answer(&request).await
    }

    fn caller(&self, response: &TokenResponse) -> Caller {
        self.verifier.verify(response.token.expose()).unwrap()
    }

    async fn refresh_token(&self) -> Secret {
        self.ask(password_of("s3cret"), "").await.unwrap().refresh_token.unwrap()
    }
}

fn password_of(password: &str) -> TokenGrant {
    TokenGrant::Password { user: "demo".to_owned(), password: password.into() }
}

#[tokio::test]
async fn one_token_carries_several_scopes_as_far_as_allowed() {
    let world = world();
    let scopes = "repository:a:pull,push repository:b/c:pull other:x:y registry:catalog:*";
    let (a, b) = ("a".parse().unwrap(), "b/c".parse().unwrap());
    let response = world.ask(password_of("s3cret"), scopes).await.unwrap();
    let caller = world.caller(&response);
    assert_eq!(&*caller.subject, "demo");
    assert_eq!(caller.offset, Some(Offset::new(2, 17)));
    assert!(caller.access.allows(&a, Action::Push) && caller.access.allows(&b, Action::Pull));
    assert!(!caller.access.allows(&b, Action::Push) && caller.access.allows_catalog());

    let anonymous = world.ask(TokenGrant::Anonymous, scopes).await.unwrap();
    assert!(anonymous.refresh_token.is_none());
    let anonymous = world.caller(&anonymous);
    assert!(anonymous.anonymous && anonymous.access.allows(&a, Action::Pull));
    assert!(!anonymous.access.allows(&a, Action::Push), "200 with fewer rights");
}

#[tokio::test]
async fn the_body_is_what_clients_read() {
    let world = world();
    let response = world.ask(password_of("s3cret"), "repository:a:pull").await.unwrap();
    let body: serde_json::Value = serde_json::from_str(&response.to_json()).unwrap();
    assert_eq!(body["token"], response.token.expose());
    assert_eq!(body["access_token"], response.token.expose());
    assert_eq!(body["expires_in"], 300);
    assert_eq!(body["issued_at"], "2027-01-15T08:00:00Z");
    assert!(body["refresh_token"].is_string());
    let anonymous = world.ask(TokenGrant::Anonymous, "").await.unwrap();
    assert!(!anonymous.to_json().contains("refresh_token"));
    assert!(!format!("{response:?}").contains(response.token.expose()));
}

#[tokio::test]
async fn who_cannot_prove_it_gets_nothing() {
    let world = world();
    let wrong = Err(TokenServiceError::Password(CheckError::Wrong));
    assert_eq!(world.ask(password_of("guess"), "repository:a:pull").await.map(drop), wrong);
    let stranger = TokenGrant::Password { user: "demo2".to_owned(), password: "s3cret".into() };
    assert_eq!(world.ask(stranger, "repository:a:pull").await.map(drop), wrong);
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let world = world();
    let mut request = TokenRequest {
        service: Some("other.example.com".to_owned()),
        scopes: vec![],
        grant: TokenGrant::Anonymous,
        offline: false,
    };
    assert_eq!(world.service.answer(&request).await.map(drop), Err(TokenServiceError::Service));
    request.service = None;
    request.scopes = vec![Scope::Catalog; SCOPES_MAX + 1];
    assert_eq!(world.service.answer(&request).await.map(drop), Err(TokenServiceError::TooManyScopes));
    let long = format!("repository:{}:pull", "x".repeat(250));
    request.scopes =
        (0..100).filter_map(|n| Scope::parse(&long.replacen("xxx", &format!("{n:03}"), 1))).collect();
    let too_long = Err(TokenServiceError::Token(TokenError::TooLong));
    assert_eq!(world.service.answer(&request).await.map(drop), too_long);
}

#[tokio::test]
async fn a_refresh_token_works_until_the_password_changes() {
    let world = world();
    let refresh = world.refresh_token().await;
    let again = TokenGrant::Refresh(refresh.clone());
    let response = world.ask(again.clone(), "repository:a:push").await.unwrap();
    assert_eq!(&*world.caller(&response).subject, "demo");
    assert!(response.refresh_token.is_none(), "the client keeps the one it has");

    let refused = Err(TokenServiceError::Refresh);
    password::add(&world.users_file(), "demo", "changed").unwrap();
    assert_eq!(world.ask(again.clone(), "").await.map(drop), refused);
    let fresh = world.ask(password_of("changed"), "").await.unwrap().refresh_token.unwrap();
    assert!(world.ask(TokenGrant::Refresh(fresh.clone()), "").await.is_ok());
    password::remove(&world.users_file(), "demo").unwrap();
    assert_eq!(world.ask(TokenGrant::Refresh(fresh), "").await.map(drop), refused);
}

#[tokio::test]
async fn refresh_tokens_expire_and_cannot_be_made_up() {
    let world = world();
    let refresh = world.refresh_token().await;
    let refused = Err(TokenServiceError::Refresh);
    let bytes = URL_SAFE_NO_PAD.decode(refresh.expose()).unwrap();
    for bit in (0..bytes.len() * 8).step_by(3) {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let grant = TokenGrant::Refresh(URL_SAFE_NO_PAD.encode(changed).into());
        assert_eq!(world.ask(grant, "").await.map(drop), refused, "bit {bit}");
    }
    let access = world.ask(password_of("s3cret"), "").await.unwrap().token;
    for bad in ["", "x", access.expose(), &"A".repeat(REFRESH_BYTES_MAX + 1)] {
        assert_eq!(world.ask(TokenGrant::Refresh(bad.into()), "").await.map(drop), refused);
    }
    assert!(world.verifier.verify(refresh.expose()).is_err(), "a refresh token is no access token");
    let last = NOW + TokenLives::default().refresh.as_secs();
    world.clock.set(Timestamp::from_secs(last - 1));
    assert!(world.ask(TokenGrant::Refresh(refresh.clone()), "").await.is_ok());
    world.clock.set(Timestamp::from_secs(last));
    assert_eq!(world.ask(TokenGrant::Refresh(refresh), "").await.map(drop), refused);
}
