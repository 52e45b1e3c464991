//! A whole flannel cluster on one machine.
//!
//! 1. Make hosts: network namespaces joined by a switch.
//! 2. Run a network on each: all lease their subnets from one registry in memory.
//! 3. Put a pod on each host.
//! 4. Send traffic between every pair of pods, and show what came of it.
//!
//! Namespaces without names and devices in them end with the process, however it ends.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to the person who runs it")]

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

/// Shows the whole thing. It succeeds if every pair of pods could talk.
async fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    flannel_testing::check_requirements()?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupted = async || tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () };
    println!("flannel on one machine: {} hosts, backend {}, registry in memory\n", args.hosts, args.backend);

    let (cluster, all_talk) = tokio::select! {
        shown = show(args) => shown?,
        // What was being shown is dropped, and with it everything that was made for it.
        () = interrupted() => {
            println!("\n\nInterrupted: all hosts and pods are gone.");
            return Ok(ExitCode::from(130));
        }
    };
    if args.keep {
        cluster.look_around();
        interrupted().await;
        println!("\nAll hosts and pods are gone.");
    }
    cluster.stop().await?;
    Ok(if all_talk { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn show(args: &Args) -> Result<(Cluster, bool), Box<dyn Error>> {
    let cluster = Cluster::start(args).await?;
    cluster.show();
    let all_talk = traffic::show(&cluster).await?;
    Ok((cluster, all_talk))
}
