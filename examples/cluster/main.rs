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

use std::process::ExitCode;

use args::Args;
use cluster::Cluster;

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
    tokio::select! {
        outcome = run(&args) => match outcome {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("\ncluster: {error}");
                ExitCode::FAILURE
            }
        },
        // What `run` holds is dropped, and with it everything it made.
        _ = tokio::signal::ctrl_c() => {
            println!("\n\nInterrupted: all hosts and pods are gone.");
            ExitCode::from(130)
        }
    }
}

/// Shows the whole thing, and tells whether every pair of pods could talk.
async fn run(args: &Args) -> Result<bool, Box<dyn std::error::Error>> {
    flannel_testing::check_requirements()?;
    println!("flannel on one machine: {} hosts, backend {}, registry in memory\n", args.hosts, args.backend);
    let cluster = Cluster::start(args).await?;
    cluster.show();
    let all_talk = traffic::show(&cluster).await?;
    if args.keep {
        cluster.look_around();
        tokio::signal::ctrl_c().await?;
        println!();
    }
    cluster.stop().await?;
    Ok(all_talk)
}
