use std::sync::Mutex as StdMutex;

use outport_proto::RepoName;

use super::*;
use crate::{
    auth::{Grant, Judge, JudgeError, Leeway, SigningKey, TokenIssuer},
    clock::{Clock as _, ManualClock},
};

const SERVICE: &str = "registry.example.com";
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn repo() -> RepoName {
    "team/app".parse().unwrap()
}

fn pull() -> Wanted {
    Wanted { question: Question::Repository(repo()), instead: None, perhaps_push: false }
}

fn clock() -> Arc<ManualClock> {
    ManualClock::at(NOW)
}

fn without_registry() -> Authenticator {
    Authenticator::new(Verifier::new(clock(), Leeway::default()), None)
}

fn trusting(key: &SigningKey) -> AuthMode {
    let jwks = SigningKey::jwks([key]).unwrap();
    AuthMode::Token { jwks, issuer: "issuer".to_owned(), roots: Vec::new() }
}

fn token(key: &SigningKey) -> String {
    let access: Access = Scope::parse_list("repository:team/app:pull").collect();
    let grant = Grant { subject: "ana", access: &access, offset: None, life: Duration::from_secs(300) };
    let issued = TokenIssuer::new(key.clone(), "issuer", SERVICE).issue(&grant, clock().now()).unwrap();
    format!("Bearer {}", issued.token.expose())
}

#[tokio::test]
async fn everybody_is_somebody_where_nobody_is_asked() {
    let authenticator = without_registry();
    let unknown = authenticator.caller(Some("Bearer a.b.c"), pull).await;
    assert!(matches!(unknown, Err(Refused::Unavailable(_))), "{unknown:?}");
    authenticator.learn(&AuthMode::Anonymous, "").unwrap();
    for authorization in [None, Some("Basic YW5hOnMzY3JldA=="), Some("nonsense")] {
        let caller = authenticator.caller(authorization, pull).await.unwrap();
        assert!(caller.access.allows(&repo(), Action::Pull) && !caller.access.allows(&repo(), Action::Push));
        let looking = || Wanted { perhaps_push: true, ..pull() };
        let caller = authenticator.caller(authorization, looking).await.unwrap();
        assert!(caller.access.allows(&repo(), Action::Push), "a look before a push is answered as such");
        let writer = authenticator.writer(authorization, || pull().question).await.unwrap();
        assert!(writer.access.allows(&repo(), Action::Delete));
    }
    assert_eq!(authenticator.demand(), Demand::Token);
}

/// Keys that appear when somebody looks for them.
struct Appearing {
    authenticator: std::sync::Weak<Authenticator>,
    key: SigningKey,
    looked_for: StdMutex<Vec<String>>,
}

impl FindKey for Appearing {
    fn find<'a>(&'a self, unknown: &'a str) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
        self.looked_for.lock().unwrap().push(unknown.to_owned());
        self.authenticator.upgrade().unwrap().learn(&trusting(&self.key), SERVICE).unwrap();
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Where keys come from cannot be reached.
struct Away;

impl FindKey for Away {
    fn find<'a>(&'a self, _: &'a str) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
        Box::pin(std::future::ready(Err("the issuer is away".to_owned())))
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_be_looked_for_is_not_denied() {
    let [known, new] = [(); 2].map(|()| SigningKey::generate().unwrap());
    let authenticator = without_registry();
    authenticator.learn(&trusting(&known), SERVICE).unwrap();
    authenticator.find_keys_by(Arc::new(Away));
    for _ in 0..2 {
        let unsaid = authenticator.caller(Some(&token(&new)), pull).await.unwrap_err();
        assert!(unsaid.to_string().ends_with("looked for in vain: the issuer is away"), "{unsaid}");
        assert!(authenticator.caller(Some(&token(&known)), pull).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_new_is_looked_for_once_in_a_while() {
    let [old, new, stranger] = [(); 3].map(|()| SigningKey::generate().unwrap());
    let authenticator = Arc::new(without_registry());
    authenticator.learn(&trusting(&old), SERVICE).unwrap();
    let appearing = Arc::new(Appearing {
        authenticator: Arc::downgrade(&authenticator),
        key: new.clone(),
        looked_for: StdMutex::default(),
    });
    authenticator.find_keys_by(appearing.clone());
    let is_let_in = async |key: &SigningKey| authenticator.caller(Some(&token(key)), pull).await.is_ok();
    assert!(is_let_in(&old).await);
    let caller = authenticator.caller(Some(&token(&new)), pull).await.unwrap();
    assert!(caller.access.allows(&repo(), Action::Pull));
    assert!(!is_let_in(&old).await, "a key that went is not believed any longer");
    assert!(!is_let_in(&stranger).await);
    assert_eq!(*appearing.looked_for.lock().unwrap(), [new.id()]);
    tokio::time::advance(LOOK_INTERVAL).await;
    assert!(!is_let_in(&stranger).await);
    assert_eq!(*appearing.looked_for.lock().unwrap(), [new.id(), stranger.id()]);
}

#[tokio::test]
async fn our_own_keys_are_not_looked_for_elsewhere() {
    let [own, stranger] = [(); 2].map(|()| SigningKey::generate().unwrap());
    let authenticator = Arc::new(without_registry());
    let jwks = SigningKey::jwks([&own]).unwrap();
    authenticator.learn(&AuthMode::Outport { jwks, issuer: "issuer".to_owned() }, SERVICE).unwrap();
    let appearing = Appearing {
        authenticator: Arc::downgrade(&authenticator),
        key: stranger.clone(),
        looked_for: StdMutex::default(),
    };
    authenticator.find_keys_by(Arc::new(appearing));
    let refused = authenticator.caller(Some(&token(&stranger)), pull).await;
    assert_eq!(refused, Err(Refused::Unauthorized(Some(ChallengeError::InvalidToken))));
}

/// Answers by user and question.
struct Registry(fn(Option<&str>, &Question) -> Result<Verdict, JudgeError>);

impl Judge for Registry {
    fn judge<'a>(
        &'a self,
        authorization: Option<&'a Secret>,
        question: &'a Question,
    ) -> Pin<Box<dyn Future<Output = Result<Verdict, JudgeError>> + Send + 'a>> {
        Box::pin(std::future::ready((self.0)(authorization.map(Secret::expose), question)))
    }
}

fn delegating(judge: fn(Option<&str>, &Question) -> Result<Verdict, JudgeError>) -> Authenticator {
    let verdicts = Verdicts::new(Arc::new(Registry(judge)), clock()).unwrap();
    let authenticator = Authenticator::new(Verifier::new(clock(), Leeway::default()), Some(verdicts));
    let mode = AuthMode::Delegated {
        challenge: Some(RegistryChallenge::Basic { realm: "Registry".to_owned() }),
        allow_seconds: 60,
        deny_seconds: 10,
        cached_max: 10,
        revoked: NOW,
    };
    authenticator.learn(&mode, "").unwrap();
    authenticator
}

/// `ana:s3cret`
const ANA: &str = "Basic YW5hOnMzY3JldA==";

#[tokio::test]
async fn the_registry_says_who_may() {
    let authenticator = delegating(|authorization, question| match (authorization, question) {
        (None | Some("Basic eDp5"), _) => Ok(Verdict::Unauthorized),
        (Some(_), Question::Repository(repo)) if repo.as_str() == "team/app" => Ok(Verdict::Yes),
        (Some(_), Question::Repository(repo)) if repo.as_str() == "secret" => Ok(Verdict::Denied),
        (Some(_), Question::Repository(_) | Question::Blob { .. }) => Ok(Verdict::Unknown),
        (Some(_), Question::Manifest { .. } | Question::Ping) => Ok(Verdict::Yes),
        (Some(_), Question::Catalog) => Err(JudgeError("it is down".to_owned())),
    });
    assert_eq!(
        authenticator.demand(),
        Demand::Registry(RegistryChallenge::Basic { realm: "Registry".to_owned() })
    );
    let caller = authenticator.caller(Some(ANA), pull).await.unwrap();
    assert!(caller.access.allows(&repo(), Action::Pull) && !caller.access.allows(&repo(), Action::Push));
    assert_eq!((&*caller.subject, caller.anonymous, caller.issued_at), ("ana", false, None));
    let opaque = authenticator.caller(Some("Bearer opaque"), pull).await.unwrap();
    assert_eq!((&*opaque.subject, opaque.issued_at), ("", Some(NOW)), "issued before it was seen");

    let question = |name: &str, instead: Option<Question>| Wanted {
        question: Question::Repository(name.parse().unwrap()),
        instead,
        perhaps_push: false,
    };
    let asks = async |authorization, wanted: Wanted| authenticator.caller(authorization, || wanted).await;
    let invalid = Some(ChallengeError::InvalidToken);
    assert_eq!(asks(None, pull()).await, Err(Refused::Unauthorized(None)));
    assert_eq!(asks(Some("Basic eDp5"), pull()).await, Err(Refused::Unauthorized(invalid)));
    assert_eq!(asks(Some(ANA), question("secret", None)).await, Err(Refused::Denied));
    assert_eq!(asks(Some(ANA), question("nothing", None)).await, Err(Refused::Unknown));
    let untagged: RepoName = "untagged".parse().unwrap();
    let manifest = Question::Manifest { repo: untagged.clone(), reference: "1".parse().unwrap() };
    let caller = asks(Some(ANA), question("untagged", Some(manifest))).await.unwrap();
    assert!(caller.access.allows(&untagged, Action::Pull));
    let secret: RepoName = "secret".parse().unwrap();
    let readable = Question::Manifest { repo: secret.clone(), reference: "1".parse().unwrap() };
    let caller = asks(Some(ANA), question("secret", Some(readable))).await.unwrap();
    assert!(caller.access.allows(&secret, Action::Pull), "who may not list may read all the same");
    let hidden = Question::Blob { repo: secret, digest: outport_proto::Digest::sha256(b"") };
    assert_eq!(asks(Some(ANA), question("secret", Some(hidden))).await, Err(Refused::Denied));
    let blob = Question::Blob { repo: untagged, digest: outport_proto::Digest::sha256(b"") };
    assert_eq!(asks(Some(ANA), question("untagged", Some(blob))).await, Err(Refused::Unknown));
    let catalog = Wanted { question: Question::Catalog, ..pull() };
    let unavailable = asks(Some(ANA), catalog).await.unwrap_err();
    assert!(unavailable.to_string().ends_with("without an answer: it is down"), "{unavailable}");
}

#[tokio::test]
async fn how_to_come_is_said_while_the_registry_is_silent() {
    let authenticator = delegating(|_, _| Err(JudgeError("it is down".to_owned())));
    let ping = || Wanted { question: Question::Ping, ..pull() };
    assert_eq!(authenticator.caller(None, ping).await, Err(Refused::Unauthorized(None)));
    assert!(matches!(authenticator.caller(Some(ANA), ping).await, Err(Refused::Unavailable(_))));
    assert!(matches!(authenticator.caller(None, pull).await, Err(Refused::Unavailable(_))));
}

#[tokio::test]
async fn who_writes_must_be_known_and_the_registry_sees_to_the_rest() {
    let authenticator = delegating(|authorization, _| match authorization {
        Some(ANA) => Ok(Verdict::Unknown),
        Some("Basic eDp5") => Ok(Verdict::Denied),
        Some(_) => Err(JudgeError("it is down".to_owned())),
        None => Ok(Verdict::Unauthorized),
    });
    let writes = async |authorization| authenticator.writer(authorization, || pull().question).await;
    for authorization in [ANA, "Basic eDp5"] {
        let writer = writes(Some(authorization)).await.unwrap();
        assert!(writer.access.allows(&repo(), Action::Push));
    }
    assert_eq!(writes(None).await, Err(Refused::Unauthorized(None)));
    assert!(matches!(writes(Some("Basic b3RoZXI6eA==")).await, Err(Refused::Unavailable(_))));
    assert!(authenticator.writer_at_registry(None, || Question::Ping).await.unwrap().anonymous);
}
