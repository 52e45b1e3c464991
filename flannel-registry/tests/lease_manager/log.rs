//! Log lines for operators.

use flannel_core::LeaseManager;

use crate::site::*;

#[tokio::test(start_paused = true)]
async fn log_lines_match_upstream() {
    let log = Log::default();
    let _guard = log.install();
    let site = site();
    site.lease("10.9.1.0-24", 1).await;
    let own = site.acquire_with(r#"{"Network":"10.5.0.0/28"}"#, Some("10.7.1.0-24")).await.unwrap();
    let subnet = own.subnet.v4().unwrap();
    site.acquire_with(r#"{"Network":"10.5.0.0/28"}"#, None).await.unwrap();
    site.manager.release(&own).await.unwrap();
    site.acquire_with(CONFIG, Some("10.5.7.0-24")).await.unwrap();
    assert_eq!(
        log.lines(),
        [
            "Found lease (10.9.1.0/24) for current IP (192.168.0.1) but not compatible with current config, deleting",
            "Found previously leased subnet (10.7.1.0/24) that is not compatible with the network config, ignoring",
            "Picking subnet in range 10.5.0.4 ... 10.5.0.12",
            &format!("Allocated lease ({subnet}) to current node (192.168.0.1) "),
            &format!("Found lease ({subnet}) for current IP (192.168.0.1), reusing"),
            "Found previously leased subnet (10.5.7.0/24), reusing",
            "Allocated lease (10.5.7.0/24) to current node (192.168.0.1) ",
        ]
    );
}

/// The log of this thread, from level info.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn install(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || log.clone())
            .without_time()
            .with_level(false)
            .with_target(false)
            .with_ansi(false)
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
