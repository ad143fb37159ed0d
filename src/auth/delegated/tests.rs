use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use outport_proto::{Reference, RepoName};
use tokio::sync::Semaphore;

use super::*;
use crate::clock::ManualClock;

/// Says what it is told to, once it may.
struct Scripted {
    says: Mutex<VecDeque<Result<Verdict, JudgeError>>>,
    asked: AtomicUsize,
    may_answer: Semaphore,
}

impl Judge for Scripted {
    fn judge<'a>(
        &'a self,
        _: Option<&'a Secret>,
        _: &'a Question,
    ) -> Pin<Box<dyn Future<Output = Result<Verdict, JudgeError>> + Send + 'a>> {
        Box::pin(async move {
            self.asked.fetch_add(1, SeqCst);
            self.may_answer.acquire().await.unwrap().forget();
            self.says.lock().unwrap().pop_front().unwrap_or(Ok(Verdict::Yes))
        })
    }
}

struct World {
    judge: Arc<Scripted>,
    verdicts: Verdicts,
}

fn world(says: impl IntoIterator<Item = Result<Verdict, JudgeError>>) -> World {
    let judge = Arc::new(Scripted {
        says: Mutex::new(says.into_iter().collect()),
        asked: AtomicUsize::new(0),
        may_answer: Semaphore::new(1000),
    });
    let clock = ManualClock::at(Timestamp::from_secs(1_800_000_000));
    let verdicts = Verdicts::new(Arc::clone(&judge) as Arc<dyn Judge>, clock).unwrap();
    World { judge, verdicts }
}

impl World {
    async fn says(&self, authorization: &str, repo: &str) -> Result<Verdict, JudgeError> {
        let question = Question::Repository(repo.parse().unwrap());
        let secret = (!authorization.is_empty()).then(|| Secret::from(authorization));
        self.verdicts.of(secret.as_ref(), &question).await.map(|judged| judged.verdict)
    }

    fn asked(&self) -> usize {
        self.judge.asked.load(SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn a_yes_is_remembered_for_longer_than_a_no() {
    let world = world([Ok(Verdict::Yes), Ok(Verdict::Unauthorized)]);
    assert_eq!(world.says("Basic ana", "team/app").await, Ok(Verdict::Yes));
    assert_eq!(world.says("Basic bob", "team/app").await, Ok(Verdict::Unauthorized));
    tokio::time::advance(Duration::from_millis(9_999)).await;
    assert_eq!(world.says("Basic ana", "team/app").await, Ok(Verdict::Yes));
    assert_eq!(world.says("Basic bob", "team/app").await, Ok(Verdict::Unauthorized));
    assert_eq!(world.asked(), 2);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(world.says("Basic bob", "team/app").await, Ok(Verdict::Yes), "the password was changed");
    assert_eq!(world.asked(), 3);
    tokio::time::advance(Duration::from_secs(50)).await;
    world.says("Basic ana", "team/app").await.unwrap();
    assert_eq!(world.asked(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_may_be_there_the_next_time() {
    let world = world([Ok(Verdict::Unknown), Ok(Verdict::Denied)]);
    assert_eq!(world.says("Basic ana", "team/app").await, Ok(Verdict::Unknown));
    assert_eq!(world.says("Basic ana", "team/app").await, Ok(Verdict::Denied), "it was pushed meanwhile");
    assert_eq!(world.says("Basic ana", "team/app").await, Ok(Verdict::Denied));
    assert_eq!(world.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_for_these_credentials_and_this_question_alone() {
    let world = world([]);
    let repo: RepoName = "team/app".parse().unwrap();
    let reference: Reference = "1".parse().unwrap();
    let secret = Secret::from("Basic ana");
    let questions = [
        Question::Ping,
        Question::Catalog,
        Question::Repository(repo.clone()),
        Question::Repository("team/ap".parse().unwrap()),
        Question::Manifest { repo, reference },
    ];
    for times in 1..=2 {
        for authorization in [None, Some(&secret), Some(&Secret::from("")), Some(&Secret::from("Basic an"))] {
            for question in &questions {
                world.verdicts.of(authorization, question).await.unwrap();
            }
        }
        assert_eq!(world.asked(), 20, "round {times}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_holds_no_credentials_and_differs_from_process_to_process() {
    let (one, two) = (world([]), world([]));
    let question = Question::Ping;
    let secret = Secret::from("Basic YW5hOnMzY3JldA==");
    let hash = one.verdicts.hash(Some(&secret), &question);
    assert_eq!(hash, one.verdicts.hash(Some(&secret), &question));
    assert_ne!(hash, two.verdicts.hash(Some(&secret), &question));
    assert_eq!(format!("{:?}", one.verdicts), "Verdicts(..)");
}

#[tokio::test(start_paused = true)]
async fn revoking_makes_all_be_asked_again() {
    let world = world([Ok(Verdict::Yes), Ok(Verdict::Unauthorized), Ok(Verdict::Yes), Ok(Verdict::Denied)]);
    let revoke = |seconds| world.verdicts.remember(Remembering::default(), Timestamp::from_secs(seconds));
    revoke(1);
    assert_eq!(world.says("Basic ana", "team/app").await, Ok(Verdict::Yes));
    revoke(1);
    assert_eq!(world.says("Basic ana", "team/app").await, Ok(Verdict::Yes), "nothing new");
    revoke(2);
    assert_eq!(world.says("Basic ana", "team/app").await, Ok(Verdict::Unauthorized));

    // What was on its way when everything was revoked is not kept.
    revoke(3);
    world.judge.may_answer.forget_permits(1000);
    let question = world.says("Basic ana", "team/app");
    let revoked_meanwhile = async {
        while world.asked() < 3 {
            tokio::task::yield_now().await;
        }
        revoke(4);
        world.judge.may_answer.add_permits(1000);
    };
    assert_eq!(tokio::join!(question, revoked_meanwhile).0, Ok(Verdict::Yes));
    assert_eq!(world.says("Basic ana", "team/app").await, Ok(Verdict::Denied));
}

#[tokio::test(start_paused = true)]
async fn who_asks_the_same_at_once_shares_one_question() {
    let broken = || JudgeError("the registry is down".to_owned());
    let world = world([Err(broken()), Ok(Verdict::Yes)]);
    world.judge.may_answer.forget_permits(1000);
    let ask = || world.says("Basic ana", "team/app");
    let answer = async {
        while world.asked() < 1 {
            tokio::task::yield_now().await;
        }
        world.judge.may_answer.add_permits(1000);
    };
    let (one, two, three, ()) = tokio::join!(ask(), ask(), ask(), answer);
    assert_eq!([one, two, three], [Err(broken()), Err(broken()), Err(broken())]);
    assert_eq!(world.asked(), 1);
    assert_eq!(ask().await, Ok(Verdict::Yes), "an error is not remembered");
    assert_eq!(ask().await, Ok(Verdict::Yes));
    let Counted { remembered, asked, unanswered } = &world.verdicts.counted;
    assert_eq!((remembered.get(), asked.get(), unanswered.get()), (1, 2, 1));
    assert_eq!((world.asked(), world.verdicts.len()), (2, (1, 0)));
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_may_leave() {
    let world = world([]);
    world.judge.may_answer.forget_permits(1000);
    let mut first = Box::pin(world.says("Basic ana", "team/app"));
    tokio::select! {
        biased;
        _ = &mut first => panic!("nobody has answered"),
        () = tokio::task::yield_now() => {}
    }
    let second = world.says("Basic ana", "team/app");
    let judge = &world.judge;
    let leave = async move {
        drop(first);
        judge.may_answer.add_permits(1000);
    };
    let (second, ()) = tokio::join!(second, leave);
    assert_eq!(second, Ok(Verdict::Yes));
    assert_eq!((world.asked(), world.verdicts.len()), (2, (1, 0)));
}

#[tokio::test(start_paused = true)]
async fn answers_are_bounded_and_what_was_used_lately_stays() {
    let world = world([]);
    let remembering = Remembering { answers_max: 3, ..Remembering::default() };
    world.verdicts.remember(remembering, Timestamp::default());
    for repo in ["a", "b", "c", "a", "d"] {
        world.says("Basic ana", repo).await.unwrap();
    }
    assert_eq!((world.asked(), world.verdicts.len()), (4, (3, 0)));
    world.says("Basic ana", "a").await.unwrap();
    assert_eq!(world.asked(), 4);
    world.says("Basic ana", "b").await.unwrap();
    assert_eq!(world.asked(), 5);
    let question = Question::Repository("a".parse().unwrap());
    world.verdicts.now(Some(&Secret::from("Basic ana")), &question).await.unwrap();
    assert_eq!(world.asked(), 6, "whoever remembers it in their turn gets no old answer");
}
