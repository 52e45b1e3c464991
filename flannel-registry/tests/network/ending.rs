//! Shutdown of a network.

use std::collections::BTreeMap;

use flannel_core::{ManagerError, NetworkError, Shutdown};
use flannel_registry::MemoryRegistry;
use flannel_testing::{BackendCall, FaultyRegistry};
use futures::StreamExt;
use tokio::time::sleep;

use crate::site::*;

#[tokio::test(start_paused = true)]
async fn shutdown_keep_leaves_lease_and_host_unchanged() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let before = (site.subnets().await, node.host.peers(), node.host.calls());
    node.network.shutdown(Shutdown::Keep).await;
    assert!(node.task.await.unwrap().is_ok());
    assert_eq!((site.subnets().await, node.host.peers(), node.host.calls()), before);
    assert!(node.events.next().await.is_none(), "the events end with the network");
}

#[tokio::test(start_paused = true)]
async fn shutdown_remove_leaves_nothing() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    // The record changed meanwhile; its current state is released.
    let subnet = node.subnet();
    sleep(DAY * 2).await;
    node.network.shutdown(Shutdown::Remove).await;
    assert!(node.task.await.unwrap().is_ok());
    assert_eq!(node.host.calls().last(), Some(&BackendCall::Removed));
    assert!(!site.subnets().await.contains_key(&subnet));
}

#[tokio::test(start_paused = true)]
async fn shutdown_remove_without_a_registry_cleans_the_host_and_reports_the_lease() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    site.faulty.stop_responding();
    node.network.shutdown(Shutdown::Remove).await;
    assert!(matches!(node.task.await.unwrap(), Err(NetworkError::Release(ManagerError::Registry(_)))));
    assert_eq!(node.host.peers(), BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_handle_ends_the_task_and_keeps_everything() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let subnet = node.subnet();
    drop(node.network);
    assert!(node.task.await.unwrap().is_ok());
    assert_eq!(node.host.peers().len(), 1);
    assert!(site.subnets().await.contains_key(&subnet));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_network_can_be_shut_down() {
    for shutdown in [Shutdown::Keep, Shutdown::Remove] {
        let node = start(&FaultyRegistry::new(MemoryRegistry::new()), 1, None);
        sleep(MOMENT).await;
        node.network.shutdown(shutdown).await;
        assert!(node.task.await.unwrap().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn several_networks_in_one_process_are_independent() {
    let sites = [site(), site()];
    let mut nodes = Vec::new();
    for site in &sites {
        nodes.push(start(&site.faulty, 1, Some("10.5.7.0-24")));
        nodes.push(start(&site.faulty, 2, Some("10.5.8.0-24")));
    }
    for node in &mut nodes {
        node.is_ready().await;
    }
    let subnets: Vec<String> = nodes.iter().map(|node| node.subnet().to_string()).collect();
    assert_eq!(subnets, ["10.5.7.0-24", "10.5.8.0-24", "10.5.7.0-24", "10.5.8.0-24"]);
    sites[0].faulty.stop_responding();
    sites[1].peer("10.5.9.0-24", 9);
    sleep(MOMENT).await;
    let peers: Vec<usize> = nodes.iter().map(|node| node.host.peers().len()).collect();
    assert_eq!(peers, [1, 1, 2, 2]);
    let silent: Vec<bool> =
        nodes.iter().map(|node| node.network.status().registry.unavailable.is_some()).collect();
    assert_eq!(silent, [true, true, false, false]);
    nodes.remove(0).network.shutdown(Shutdown::Keep).await;
    assert!(nodes.iter().all(|node| !node.task.is_finished()));
}
