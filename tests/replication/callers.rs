//! Who may: what sites ask the primary about callers, through other sites as well.

use std::sync::{Arc, Mutex};

use outport::{
    auth::{Authenticator, FindKey, Judge, JudgeError, Leeway, Secret, Verdicts, Verifier},
    clock::SystemClock,
    fetch::{BoxFuture, UpstreamError},
};
use outport_proto::frame::{Credentials, Question, Verdict};

use crate::{
    logs::read_along,
    relays::Chain,
    world::{Site, World, jwks_of, repo},
};

/// The registry behind the primary: lets ana pull from team/app, and notes what it was asked.
#[derive(Default)]
struct Registry {
    asked: Mutex<Vec<(Option<String>, Question)>>,
    looked_for: Mutex<Vec<String>>,
}

impl Judge for Registry {
    fn judge<'a>(
        &'a self,
        authorization: Option<&'a Secret>,
        question: &'a Question,
    ) -> BoxFuture<'a, Result<Verdict, JudgeError>> {
        let who = authorization.map(|secret| secret.expose().to_owned());
        self.asked.lock().unwrap().push((who.clone(), question.clone()));
        Box::pin(std::future::ready(match (who.as_deref(), question) {
            (None, _) => Ok(Verdict::Unauthorized),
            (_, Question::Catalog) => Err(JudgeError("the registry cannot be reached".to_owned())),
            (Some("Basic ana"), Question::Repository(repo)) if repo.as_str() == "team/app" => {
                Ok(Verdict::Yes)
            }
            (Some("Basic ana"), Question::Repository(_)) => Ok(Verdict::Denied),
            _ => Ok(Verdict::Unknown),
        }))
    }
}

impl FindKey for Registry {
    fn find<'a>(&'a self, unknown: &'a str) -> BoxFuture<'a, Result<(), String>> {
        self.looked_for.lock().unwrap().push(unknown.to_owned());
        Box::pin(std::future::ready(Ok(())))
    }
}

fn callers(registry: &Arc<Registry>) -> Option<Arc<Authenticator>> {
    let clock = Arc::new(SystemClock);
    let verdicts = Verdicts::new(Arc::clone(registry) as Arc<dyn Judge>, clock.clone()).unwrap();
    let authenticator = Authenticator::new(Verifier::new(clock, Leeway::default()), Some(verdicts));
    authenticator.find_keys_by(Arc::clone(registry) as Arc<dyn FindKey>);
    Some(Arc::new(authenticator))
}

async fn asks(site: &Site, who: Option<&str>, question: Question) -> Result<Verdict, UpstreamError> {
    site.upstream.authorize(who.map(|who| Credentials(who.to_owned())), question).await
}

#[tokio::test]
async fn the_registry_is_asked_through_every_site_and_its_word_is_nobodys_to_keep() {
    let registry = Arc::new(Registry::default());
    let mut chain = Chain::new();
    chain.world.callers = callers(&registry);
    let primary = chain.world.primary().await;
    let sites = chain.whole(&primary).await;
    let question = || Question::Repository(repo("team/app"));
    for site in &sites {
        site.session("going live", |session| session.live).await;
        assert_eq!(asks(site, Some("Basic ana"), question()).await.unwrap(), Verdict::Yes);
        assert_eq!(asks(site, None, Question::Ping).await.unwrap(), Verdict::Unauthorized);
        let other = Question::Repository(repo("team/other"));
        assert_eq!(asks(site, Some("Basic ana"), other).await.unwrap(), Verdict::Denied);
        let manifest = Question::Manifest { repo: repo("team/app"), reference: "1".parse().unwrap() };
        assert_eq!(asks(site, Some("Bearer t"), manifest).await.unwrap(), Verdict::Unknown);
        let unsaid = asks(site, Some("Basic ana"), Question::Catalog).await.unwrap_err();
        assert!(unsaid.to_string().contains("the registry cannot be reached"), "{unsaid}");
        assert!(matches!(unsaid, UpstreamError::Unavailable(_)), "{unsaid:?}");
    }
    let asked = registry.asked.lock().unwrap().clone();
    assert_eq!(asked.iter().filter(|(_, asked)| *asked == question()).count(), 3, "{asked:?}");
    for site in sites {
        site.stop().await;
    }
    primary.stop().await;
}

#[tokio::test]
async fn a_primary_without_a_registry_does_not_say_no() {
    read_along();
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    site.session("going live", |session| session.live).await;
    let unsaid = asks(&site, Some("Basic ana"), Question::Ping).await;
    assert!(matches!(unsaid, Err(UpstreamError::Unavailable(_))), "{unsaid:?}");
    site.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn a_key_that_nobody_knows_is_looked_for_where_keys_come_from() {
    let registry = Arc::new(Registry::default());
    let mut chain = Chain::new();
    chain.world.callers = callers(&registry);
    let primary = chain.world.primary().await;
    let sites = chain.whole(&primary).await;
    let [_, _, goa] = &sites;
    goa.session("going live", |session| session.live).await;
    let keys = goa.upstream.own_keys("2024-05".to_owned()).await.unwrap();
    assert_eq!(jwks_of(&keys), "keys of goa");
    assert_eq!(*registry.looked_for.lock().unwrap(), ["2024-05"]);
    goa.upstream.own_keys("2024-06".to_owned()).await.unwrap();
    assert_eq!(registry.looked_for.lock().unwrap().len(), 1, "not again within a moment");
    for site in sites {
        site.stop().await;
    }
    primary.stop().await;
}
