//! Tensors of real files, dequantised and packed, against the `gguf` package's own (see
//! `tests/goldens/hash_dequantised.py`).

use mintage_kernels::{Format, PackedMatrix, Pool, dequantize_row};
use mintage_model::ModelFile;
use sha2::{Digest, Sha256};

const GOLDENS: &str = include_str!("../goldens/dequantised.tsv");

/// The first `rows` rows of a tensor as f32, little endian: from the file, and out of packed memory.
fn values(format: Format, data: &[u8], rows: usize, cols: usize) -> [Vec<u8>; 2] {
    let row_bytes = format.row_bytes(cols).expect("whole blocks");
    let data = &data[..rows * row_bytes];
    let packed = PackedMatrix::pack(format, rows, cols, data, &Pool::new(2)).expect("sizes fit");
    let mut values = [Vec::new(), Vec::new()];
    let mut row = vec![0.0; cols];
    for (index, src) in data.chunks_exact(row_bytes).enumerate() {
        dequantize_row(format, src, &mut row).expect("sizes fit");
        values[0].extend(row.iter().flat_map(|value| value.to_le_bytes()));
        packed.dequantize_row(index, &mut row);
        values[1].extend(row.iter().flat_map(|value| value.to_le_bytes()));
    }
    values
}

#[test]
fn tensors_of_real_files_dequantise_as_the_gguf_package_does() {
    let Some(folder) = std::env::var_os("MINTAGE_TEST_MODELS").map(std::path::PathBuf::from) else {
        eprintln!("skipped: MINTAGE_TEST_MODELS names no folder with models");
        return;
    };
    let mut open: Option<(&str, ModelFile)> = None;
    for line in GOLDENS.lines().skip(1) {
        let [file, name, kind, rows, digest]: [&str; 5] =
            line.split('\t').collect::<Vec<_>>().try_into().expect("five columns");
        if open.as_ref().is_none_or(|(opened, _)| *opened != file) {
            open = Some((file, ModelFile::open(&folder.join(file)).expect("a model file")));
        }
        let model = &open.as_ref().expect("just opened").1;
        let tensor = model.tensor(name).expect("the tensor");
        let format = Format::ALL.into_iter().find(|f| format!("{f:?}") == kind).expect("a format");
        assert_eq!(format!("{:?}", tensor.dtype), kind, "{file} {name}");
        let cols = *tensor.shape.last().expect("a dimension");
        let rows = rows.parse().expect("a number");
        for (what, values) in
            ["file", "packed"].into_iter().zip(values(format, tensor.data, rows, cols))
        {
            let found: String =
                Sha256::digest(&values).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, digest, "{file} {name} {kind}, from {what}");
        }
    }
}
