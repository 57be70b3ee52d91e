//! A crowd on one balance.

use std::sync::atomic::{AtomicUsize, Ordering};

use mintage_ledger::{AdmitError, Amount, Currency, Refusal, Together};

use crate::rig::{admission, ended, funded, tokens, usage};

/// 1,000 at once on a balance for 10: exactly 10 are served, never below zero, nothing held afterwards.
#[test]
fn a_balance_for_ten_serves_ten() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = funded(folder.path(), 10 * 20 + 19);
    let served = AtomicUsize::new(0);
    let start = std::sync::Barrier::new(1_000);
    std::thread::scope(|scope| {
        for i in 0..1_000 {
            let (ledger, served, start) = (&ledger, &served, &start);
            let request = move || {
                start.wait();
                let wanted = admission(&format!("r{i}"), "acme", 10, 10);
                match ledger.admit(wanted, |_| Ok::<(), ()>(())) {
                    Ok(hold) => {
                        let all = usage(10, 10);
                        ledger.settle(hold, all, ended(), Together::default()).wait().unwrap();
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(AdmitError::Refused(Refusal::InsufficientBalance {
                        available, ..
                    })) => {
                        assert!(!available.is_negative(), "{available}");
                    }
                    Err(other) => panic!("{other:?}"),
                }
            };
            std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, request).unwrap();
        }
    });
    assert_eq!(served.load(Ordering::Relaxed), 10);
    let balance = ledger.balance("acme", Currency::CNY);
    assert_eq!((balance.balance, balance.held), (tokens(19), Amount::ZERO));
    assert_eq!(ledger.verify().unwrap().records, 10);
}
