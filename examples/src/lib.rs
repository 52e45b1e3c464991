//! Runnable examples of flannel
