//! A flannel cluster on one machine.
//!
//! 1. Create hosts: network namespaces connected by a switch.
//! 2. Run a network on each host, with leases in an in-memory registry.
//! 3. Add a pod to each host.
//! 4. Send traffic between every pair of pods, and print the results.
//!
//! The namespaces are unnamed, so they and their devices disappear with the process.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints its results")]

mod args;
mod cluster;
mod traffic;

use std::error::Error;
use std::process::ExitCode;

use args::Args;
use cluster::Cluster;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = match args::read() {
        Ok(Some(args)) => args,
        Ok(None) => {
            print!("{}", args::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("cluster: {error}\n\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(&args).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\ncluster: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the example; returns success if every pair of pods can communicate.
async fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    flannel_testing::check_requirements()?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupted = async || tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () };
    println!("flannel on one machine: {} hosts, backend {}, in-memory registry\n", args.hosts, args.backend);

    let (cluster, all_reachable) = tokio::select! {
        shown = show(args) => shown?,
        // Dropping the future drops the cluster.
        () = interrupted() => {
            println!("\n\nInterrupted: all hosts and pods were removed.");
            return Ok(ExitCode::from(130));
        }
    };
    if args.keep {
        cluster.show_commands();
        interrupted().await;
        println!("\nAll hosts and pods were removed.");
    }
    cluster.stop().await?;
    Ok(if all_reachable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn show(args: &Args) -> Result<(Cluster, bool), Box<dyn Error>> {
    let cluster = Cluster::start(args).await?;
    cluster.show();
    let all_reachable = traffic::show(&cluster).await?;
    Ok((cluster, all_reachable))
}
