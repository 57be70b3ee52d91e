//! Any text as an answer that may call tools, in every format: however it is cut, the same comes of it.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod calls_body;

fuzz_target!(|data: &[u8]| {
    calls_body::check(data);
});
