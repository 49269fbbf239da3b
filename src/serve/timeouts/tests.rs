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
    assert_eq!((seconds, why.as_str()), (10, HANDSHAKE_TIMEOUT));
    assert_eq!(control.abort_reason(), Some(HANDSHAKE_TIMEOUT));
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
            theirs.write_all(b"GET").await.unwrap();
            tokio::time::sleep(Duration::from_secs(6)).await;
            // The end of a header. The next header follows at once.
            theirs.write_all(b"\n\n").await.unwrap();
        }
        theirs
    };
    let answer = async {
        for _ in 0..20 {
            stream.read_exact(&mut [0; 5]).await.unwrap();
            control.begin_request(Some(0));
            control.end_request();
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

/// Requests that arrive together, the last one incomplete. hyper reads each separately.
#[tokio::test(start_paused = true)]
async fn beginning_of_a_pipelined_request_has_the_header_timeout() {
    const BEGINNING: &[u8] = b"GET /b";
    for (length, request) in
        [(Some(0), "GET /a HTTP/1.1\r\n\r\n"), (Some(3), "PUT /a HTTP/1.1\r\n\r\nabc"), (Some(0), "\r\nGET /a\n\n")]
    {
        let (ours, mut theirs) = tokio::io::duplex(256);
        let (stream, control) = TimeoutStream::new(ours, &Limits::default(), Instant::now());
        let mut stream = requests(stream, &control);
        theirs.write_all(&[request.repeat(2).as_bytes(), BEGINNING].concat()).await.unwrap();
        for _ in 0..2 {
            let mut read = Vec::new();
            while !read.ends_with(b"\n\r\n") && !read.ends_with(b"\n\n") {
                stream.read_buf(&mut read).await.unwrap();
            }
            assert!(control.is_in_header() && stream.request_start().unwrap().len() > 5, "{request:?}");
            control.begin_request(length);
            let mut body = Vec::new();
            while body.len() < usize::try_from(length.unwrap()).unwrap() {
                stream.read_buf(&mut body).await.unwrap();
            }
            assert_eq!(String::from_utf8([read, body].concat()).unwrap(), request);
            control.end_request();
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut read = Vec::new();
        stream.read_buf(&mut read).await.unwrap();
        assert_eq!((read.as_slice(), stream.request_start()), (BEGINNING, Some(BEGINNING)));
        assert_eq!(read_to_failure(stream).await, (10, "the request's header took too long".to_owned()), "{request:?}");
    }
}

/// Only hyper knows where a chunked body ends, so it may have read the beginning of the next request.
#[tokio::test(start_paused = true)]
async fn beginning_behind_a_chunked_body_has_the_header_timeout() {
    const CHUNKED: &[u8] = b"3\r\nabc\r\n0\r\n\r\n";
    for (next, failure) in [("", (60, "idle for too long")), ("GET /b", (10, "the request's header took too long"))] {
        let (stream, control, mut theirs) = pair();
        let mut stream = requests(stream, &control);
        theirs.write_all(b"PUT /a\n\n").await.unwrap();
        stream.read_exact(&mut [0; 8]).await.unwrap();
        control.begin_request(None);
        theirs.write_all(&[CHUNKED, next.as_bytes()].concat()).await.unwrap();
        stream.read_exact(&mut vec![0; CHUNKED.len() + next.len()]).await.unwrap();
        control.end_request();
        assert_eq!(read_to_failure(&mut stream).await, (failure.0, failure.1.to_owned()), "{next:?}");
        assert_eq!(stream.request_start(), None, "its start is not known");
    }
}

#[tokio::test(start_paused = true)]
async fn empty_lines_between_requests_are_idle() {
    let (stream, control, mut theirs) = pair();
    let stream = requests(stream, &control);
    let drip = async {
        while theirs.write_all(b"\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(9)).await;
        }
    };
    let failure = tokio::select! { failure = read_to_failure(stream) => failure, () = drip => unreachable!() };
    assert_eq!(failure, (60, "idle for too long".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn idle_timeout_begins_when_the_response_is_sent() {
    let (ours, mut theirs) = tokio::io::duplex(64);
    let limits = Limits { min_bytes_per_s: 0, ..Limits::default() };
    let (stream, control) = TimeoutStream::new(ours, &limits, Instant::now());
    let mut stream = requests(stream, &control);
    control.begin_request(Some(0));
    let read = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(20)).await;
            theirs.read_exact(&mut [0; 64]).await.unwrap();
        }
        theirs
    };
    let answer = async {
        let mut unsent = [0; 640].as_slice();
        // hyper has all of the response, and so its log line is written, before the client has read it.
        control.end_request();
        std::future::poll_fn(|cx| {
            while !unsent.is_empty() {
                let sent = match Pin::new(&mut stream).poll_write(cx, unsent) {
                    Poll::Ready(sent) => sent.unwrap(),
                    Poll::Pending => {
                        // An idle connection reads, too.
                        let mut bytes = [0; 8];
                        let pending = Pin::new(&mut stream).poll_read(cx, &mut ReadBuf::new(&mut bytes));
                        assert!(pending.is_pending() && !control.is_idle_for(Duration::ZERO), "{pending:?}");
                        return Poll::Pending;
                    }
                };
                unsent = &unsent[sent..];
            }
            Poll::Ready(())
        })
        .await;
        stream.flush().await.unwrap();
        assert!(control.is_idle_for(Duration::ZERO) && !control.is_idle_for(Duration::from_secs(1)));
    };
    let (_theirs, ()) = tokio::join!(read, answer);
    // The end was sent when the client had read all but 64 bytes, 20 s before it had read these.
    assert_eq!(read_to_failure(stream).await, (40, "idle for too long".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn header_duration_counts_from_its_first_byte() {
    let (stream, control, mut theirs) = pair();
    let mut stream = requests(stream, &control);
    let moment = Duration::from_secs(3);
    tokio::time::sleep(moment).await;
    assert_eq!(control.header_lasted(), Duration::ZERO);
    theirs.write_all(b"GE").await.unwrap();
    stream.read_exact(&mut [0; 2]).await.unwrap();
    assert!(tokio::time::timeout(moment, stream.read_u8()).await.is_err());
    assert_eq!(control.header_lasted(), moment);
    control.begin_request(Some(0));
    assert_eq!(control.header_lasted(), Duration::ZERO);
}
