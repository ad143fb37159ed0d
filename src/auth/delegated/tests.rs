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
        let judged = self.verdicts.of(secret.as_ref(), &question).await;
        judged.map(|judged| judged.verdict).map_err(|error| match error {
            Unjudged::Unsaid(error) => error,
            Unjudged::TooMany { retry_after } => JudgeError(format!("again in {retry_after:?}")),
        })
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
    let hash = one.verdicts.hash_of(Some(&secret), &question);
    assert_eq!(hash, one.verdicts.hash_of(Some(&secret), &question));
    assert_ne!(hash, two.verdicts.hash_of(Some(&secret), &question));
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
    let Counted { remembered, asked, unanswered, .. } = &world.verdicts.counted;
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

#[tokio::test(start_paused = true)]
async fn made_up_credentials_are_not_tried_without_an_end() {
    let most = usize::try_from(WRONG_PER_MINUTE).unwrap();
    let wrong = std::iter::repeat_n(Ok(Verdict::Unauthorized), most);
    let world = world(std::iter::once(Ok(Verdict::Yes)).chain(wrong));
    assert_eq!(world.says("Basic ana", "team/app").await, Ok(Verdict::Yes));
    for number in 0..most {
        let made_up = format!("Basic {number}");
        assert_eq!(world.says(&made_up, "team/app").await, Ok(Verdict::Unauthorized));
    }
    for number in 0..100 {
        let kept_off = world.says(&format!("Basic {number}"), "team/other").await;
        assert_eq!(kept_off, Err(JudgeError("again in 1s".to_owned())));
    }
    assert_eq!((world.asked(), world.verdicts.counted.kept_off.get()), (1 + most, 100));
    // Who was let in goes on, and so does who comes without credentials.
    assert_eq!(world.says("Basic ana", "team/other").await, Ok(Verdict::Yes));
    assert_eq!(world.says("", "team/other").await, Ok(Verdict::Yes));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(world.says("Basic bob", "team/other").await, Ok(Verdict::Yes));
}

#[tokio::test(start_paused = true)]
async fn many_with_good_credentials_come_at_once() {
    let world = Arc::new(world([]));
    world.judge.may_answer.forget_permits(1000);
    let mut all = tokio::task::JoinSet::new();
    for number in 0..500 {
        let world = Arc::clone(&world);
        all.spawn(async move { world.says(&format!("Bearer {number}"), "team/app").await });
    }
    while world.asked() < 32 {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    assert_eq!(world.asked(), 32, "the others wait for their turn");
    world.judge.may_answer.add_permits(1000);
    assert_eq!(all.join_all().await, vec![Ok(Verdict::Yes); 500]);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_before_the_answer_has_tried_all_the_same() {
    let world = world([]);
    world.judge.may_answer.forget_permits(1000);
    for number in 0..WRONG_PER_MINUTE {
        let made_up = format!("Basic {number}");
        let mut asks = Box::pin(world.says(&made_up, "team/app"));
        tokio::select! {
            biased;
            _ = &mut asks => panic!("nobody has answered"),
            () = tokio::task::yield_now() => {}
        }
    }
    world.judge.may_answer.add_permits(1000);
    assert!(world.says("Basic another", "team/app").await.is_err());
}
