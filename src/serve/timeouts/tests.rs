//! Timeouts with tokio's paused clock, which advances only when all tasks wait.

use super::*;
use crate::serve::lingering_close::LingerControl;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

fn pair() -> (TimeoutStream<DuplexStream>, TimeoutControl, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(64);
    let (stream, control) = TimeoutStream::new(ours, &Limits::default(), Instant::now());
    (stream, control, theirs)
}

/// An idle connection, above TLS.
fn requests(
    stream: TimeoutStream<DuplexStream>,
    control: &TimeoutControl,
) -> RequestStream<TimeoutStream<DuplexStream>> {
    control.enter(Phase::Idle);
    RequestStream::new(stream, control.clone(), LingerControl::default())
}

/// Reads until the stream fails; returns after how many seconds, and why.
async fn read_to_failure(mut stream: impl AsyncRead + Unpin) -> (u64, String) {
    let start = Instant::now();
    loop {
        if let Err(error) = stream.read_u8().await {
            return (start.elapsed().as_secs(), error.to_string());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn handshake_deadline_counts_from_accept() {
    let (stream, control, mut theirs) = pair();
    let drip = async {
        while theirs.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    };
    let (seconds, why) = tokio::select! { failure = read_to_failure(stream) => failure, () = drip => unreachable!() };
    assert_eq!((seconds, why.as_str()), (10, HANDSHAKE_TOOK_TOO_LONG));
    assert_eq!(control.abort_reason(), Some(HANDSHAKE_TOOK_TOO_LONG));
}

#[tokio::test(start_paused = true)]
async fn idle_connection_closes_after_a_minute() {
    let (stream, control, _theirs) = pair();
    control.enter(Phase::Idle);
    assert_eq!(read_to_failure(stream).await, (60, "idle for too long".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn silence_before_first_request_has_the_header_timeout() {
    let (stream, control, _theirs) = pair();
    control.enter(Phase::FirstRequest);
    assert_eq!(read_to_failure(stream).await, (10, "idle for too long".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn dripping_header_times_out_after_ten_seconds() {
    let (stream, control, mut theirs) = pair();
    let stream = requests(stream, &control);
    let drip = async {
        while theirs.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let (seconds, why) = tokio::select! { failure = read_to_failure(stream) => failure, () = drip => unreachable!() };
    assert_eq!((seconds, why.as_str()), (10, "the request's header took too long"));
}

#[tokio::test(start_paused = true)]
async fn non_request_bytes_do_not_extend_the_idle_timeout() {
    let (stream, control, mut theirs) = pair();
    control.enter(Phase::Idle);
    let drip = async {
        while theirs.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
    };
    let (seconds, why) = tokio::select! { failure = read_to_failure(stream) => failure, () = drip => unreachable!() };
    assert_eq!((seconds, why.as_str()), (60, "idle for too long"));
}

#[tokio::test(start_paused = true)]
async fn tls_responses_do_not_extend_the_idle_timeout() {
    let (mut stream, control, mut theirs) = pair();
    control.enter(Phase::Idle);
    let drip = async {
        while theirs.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
    };
    let start = Instant::now();
    let answer = async {
        loop {
            match stream.read_u8().await {
                Ok(_) => stream.write_all(b"no").await.unwrap(),
                Err(error) => return error.to_string(),
            }
        }
    };
    let why = tokio::select! { why = answer => why, () = drip => unreachable!() };
    assert_eq!((start.elapsed().as_secs(), why.as_str()), (60, "idle for too long"));
}

#[tokio::test(start_paused = true)]
async fn each_header_has_its_own_timeout() {
    let (stream, control, mut theirs) = pair();
    let mut stream = requests(stream, &control);
    let send = async {
        for _ in 0..20 {
            theirs.write_all(b"GE").await.unwrap();
            tokio::time::sleep(Duration::from_secs(6)).await;
            // The last byte of a header. The next header follows at once.
            theirs.write_all(b"T").await.unwrap();
        }
        theirs
    };
    let answer = async {
        for _ in 0..20 {
            stream.read_exact(&mut [0; 3]).await.unwrap();
            control.enter(Phase::Responding);
            control.enter(Phase::Idle);
        }
    };
    tokio::join!(send, answer);
}

#[tokio::test(start_paused = true)]
async fn dripping_body_is_too_slow_and_stopped_body_stalls() {
    let (stream, control, mut theirs) = pair();
    control.enter(Phase::Body);
    let drip = async {
        while theirs.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    };
    let (seconds, why) = tokio::select! { failure = read_to_failure(stream) => failure, () = drip => unreachable!() };
    assert_eq!((seconds, why.as_str()), (60, "below the minimum rate for too long (limits.min_bytes_per_s)"));
    let (stream, control, _theirs) = pair();
    control.enter(Phase::Body);
    assert_eq!(read_to_failure(stream).await, (30, "no progress for too long".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn slow_steady_body_is_accepted() {
    let (mut stream, control, mut theirs) = pair();
    control.enter(Phase::Body);
    let send = async {
        for _ in 0..200 {
            theirs.write_all(&[0; 300]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        drop(theirs);
    };
    let mut all = Vec::new();
    let (received, ()) = tokio::join!(stream.read_to_end(&mut all), send);
    assert_eq!(received.unwrap(), 60_000);
}

#[tokio::test(start_paused = true)]
async fn client_that_does_not_read_times_out_after_30_s() {
    let (mut stream, control, _theirs) = pair();
    control.enter(Phase::Responding);
    let start = Instant::now();
    let error = stream.write_all(&[0; 1000]).await.unwrap_err();
    assert_eq!((start.elapsed().as_secs(), error.to_string().as_str()), (30, "no progress for too long"));
}

#[tokio::test(start_paused = true)]
async fn client_that_reads_at_a_trickle_is_too_slow() {
    let (mut stream, control, mut theirs) = pair();
    control.enter(Phase::Responding);
    let whole = vec![0; 100_000];
    let start = Instant::now();
    let trickle = async {
        while theirs.read_u8().await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let error = tokio::select! {
        result = stream.write_all(&whole) => result.unwrap_err(),
        () = trickle => unreachable!(),
    };
    assert_eq!(
        (start.elapsed().as_secs(), error.to_string().as_str()),
        (60, "below the minimum rate for too long (limits.min_bytes_per_s)")
    );
    assert_eq!(control.abort_reason(), Some("below the minimum rate for too long (limits.min_bytes_per_s)"));
}

#[tokio::test(start_paused = true)]
async fn client_that_reads_slowly_but_steadily_gets_everything() {
    let (mut stream, control, mut theirs) = pair();
    control.enter(Phase::Responding);
    let whole = vec![0; 60_000];
    let read = async {
        let mut all = 0;
        while all < 60_000 {
            theirs.read_exact(&mut [0; 300]).await.unwrap();
            all += 300;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let (written, ()) = tokio::join!(stream.write_all(&whole), read);
    written.unwrap();
}

#[tokio::test(start_paused = true)]
async fn server_side_work_has_no_timeout() {
    let (mut stream, control, mut theirs) = pair();
    control.enter(Phase::Responding);
    let late = async {
        tokio::time::sleep(Duration::from_hours(1)).await;
        theirs.write_all(b"x").await.unwrap();
    };
    let (read, ()) = tokio::join!(stream.read_u8(), late);
    assert_eq!(read.unwrap(), b'x');
}

#[tokio::test(start_paused = true)]
async fn header_duration_counts_only_waiting_time() {
    let (stream, control, mut theirs) = pair();
    let mut stream = requests(stream, &control);
    let moment = Duration::from_secs(3);
    tokio::time::sleep(moment).await;
    theirs.write_all(b"GE").await.unwrap();
    stream.read_exact(&mut [0; 2]).await.unwrap();
    assert!(tokio::time::timeout(moment, stream.read_u8()).await.is_err());
    assert_eq!(control.header_lasted(), moment);
    theirs.write_all(b"T").await.unwrap();
    stream.read_u8().await.unwrap();
    control.enter(Phase::Responding);
    assert_eq!(control.header_lasted(), Duration::ZERO);
    control.enter(Phase::Idle);
    theirs.write_all(b"junk").await.unwrap();
    stream.read_exact(&mut [0; 4]).await.unwrap();
    assert_eq!(control.header_lasted(), Duration::ZERO);
    // hyper closes a request that it has refused in this way.
    stream.shutdown().await.unwrap();
    tokio::time::sleep(moment).await;
    assert_eq!(control.header_lasted(), moment);
}
