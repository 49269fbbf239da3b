//! The order in which handshakes get slots.

use std::task::Waker;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::serve::Limits;
use crate::serve::timeouts::TimeoutStream;

fn turn(queue: &Arc<CryptoQueue>) -> (HandshakeTurn, TimeoutControl) {
    let (_, timeouts) = TimeoutStream::new(tokio::io::empty(), &Limits::default(), Instant::now());
    (queue.enter(timeouts.clone()), timeouts)
}

/// Whether the turn has a slot now.
fn has_slot(turn: &HandshakeTurn) -> bool {
    turn.poll_begin(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Ends the running step, as the end of a poll does.
fn end_step(turn: &HandshakeTurn) {
    let mut pending = pin!(std::future::pending::<()>());
    let _ = turn.poll_step(pending.as_mut(), &mut Context::from_waker(Waker::noop()));
}

#[tokio::test]
async fn slots_go_to_the_oldest_handshakes() {
    let queue = CryptoQueue::new(2);
    let turns: Vec<HandshakeTurn> = (0..5).map(|_| turn(&queue).0).collect();
    // They request slots in another order than they arrived.
    let waiting = [4, 0, 2, 1, 3].map(|number: usize| has_slot(&turns[number]));
    assert_eq!(waiting, [true, true, false, false, false]);
    end_step(&turns[4]);
    assert_eq!([1, 2, 3].map(|number: usize| has_slot(&turns[number])), [true, false, false]);
    end_step(&turns[0]);
    end_step(&turns[1]);
    assert_eq!([3, 2].map(|number: usize| has_slot(&turns[number])), [true, true]);
    assert_eq!(queue.lock().free, 0);
}

#[tokio::test]
async fn old_handshake_comes_before_a_new_hello() {
    let queue = CryptoQueue::new(1);
    let turns: Vec<HandshakeTurn> = (0..3).map(|_| turn(&queue).0).collect();
    assert_eq!([0, 1, 2].map(|number: usize| has_slot(&turns[number])), [true, false, false]);
    // The first waits for its client, and the second has the slot. Then the client responds.
    end_step(&turns[0]);
    assert!(!has_slot(&turns[0]) && has_slot(&turns[1]));
    end_step(&turns[1]);
    assert!(has_slot(&turns[0]) && !has_slot(&turns[2]));
}

#[tokio::test]
async fn handshake_that_ends_in_the_queue_frees_its_slot() {
    let queue = CryptoQueue::new(1);
    let mut turns: Vec<HandshakeTurn> = (0..10_000).map(|_| turn(&queue).0).collect();
    assert_eq!(turns.iter().filter(|turn| has_slot(turn)).count(), 1);
    let last = turns.pop().unwrap();
    // Each gets the slot from the one before it, and is dropped before it uses the slot.
    drop(turns);
    assert!(has_slot(&last));
    drop(last);
    let queue = queue.lock();
    assert_eq!((queue.free, queue.waiting.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn time_in_the_queue_extends_the_handshake_timeout() {
    let queue = CryptoQueue::new(1);
    let ((first, first_timeouts), (second, second_timeouts)) = (turn(&queue), turn(&queue));
    let deadlines = || [&first_timeouts, &second_timeouts].map(TimeoutControl::handshake_deadline);
    let before = deadlines();
    assert!(has_slot(&first) && !has_slot(&second));
    tokio::time::advance(Duration::from_secs(7)).await;
    end_step(&first);
    assert!(has_slot(&second));
    assert_eq!(deadlines(), [before[0], before[1] + Duration::from_secs(7)]);
}

/// A stream of `turn`, and the client's end of it.
fn stream(turn: &HandshakeTurn, ahead: &[u8]) -> (TurnStream<DuplexStream>, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    (TurnStream::new(ours, ahead.to_vec(), turn.clone()), theirs)
}

#[tokio::test]
async fn no_slot_is_held_while_waiting_for_the_client() {
    let queue = CryptoQueue::new(1);
    let [(first, _), (second, _)] = [turn(&queue), turn(&queue)];
    let (mut stream, mut client) = stream(&first, b"");
    first.begin().await;
    let handshake = async {
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).await.unwrap();
        bytes
    };
    let mut handshake = pin!(first.run(handshake));
    let mut poll = || handshake.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(poll().is_pending());
    assert!(has_slot(&second), "the first waits for its client");
    client.write_all(b"hello").await.unwrap();
    assert!(poll().is_pending(), "the slot is the second's");
    end_step(&second);
    assert_eq!(poll(), Poll::Ready(*b"hello"));
    assert_eq!(queue.lock().free, 1);
}

#[tokio::test]
async fn stream_reads_without_slot_after_the_handshake() {
    let queue = CryptoQueue::new(1);
    let [(first, _), (second, _)] = [turn(&queue), turn(&queue)];
    let (mut stream, mut client) = stream(&first, b"one two ");
    first.begin().await;
    let mut one = [0; 4];
    first.run(stream.read_exact(&mut one)).await.unwrap();
    assert!(has_slot(&second));
    client.write_all(b"three").await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!((&one, rest.as_str()), (b"one ", "two three"));
}

#[tokio::test]
async fn closed_client_is_detected_before_its_handshake() {
    let queue = CryptoQueue::new(1);
    let (turn, _) = turn(&queue);
    let (mut open, mut client) = stream(&turn, b"");
    assert!(!open.is_closed().await);
    client.write_all(b"more").await.unwrap();
    assert!(!open.is_closed().await && !open.is_closed().await);
    let mut more = [0; 4];
    open.read_exact(&mut more).await.unwrap();
    assert_eq!(&more, b"more");
    drop(client);
    assert!(open.is_closed().await);
}
