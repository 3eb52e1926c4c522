//! The cards, by NVIDIA's datasheets, and how much of its ceilings a kernel is expected to reach.

/// A card's ceilings.
#[derive(Debug)]
pub struct Gpu {
    /// How it is named on the command line.
    pub id: &'static str,
    /// How NVIDIA names it.
    pub name: &'static str,
    /// How its driver does.
    pub device: &'static str,
    /// bf16 products with f32 sums, without sparsity, FLOP/s.
    pub matrix_rate: f64,
    /// Bytes/s to and from memory.
    pub bandwidth: f64,
    /// Bytes of memory, the datasheet's GB taken as 10⁹: the smaller of its two meanings, and less than drivers report
    /// (143,771 MiB for an H200, 81,559 for an H100, 46,068 for an L40S, 24,564 for an RTX 4090).
    pub memory: u64,
    /// Where these numbers stand.
    pub source: &'static str,
    /// What is expected of kernels.
    pub expected: &'static Fractions,
}

/// A share of a ceiling, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fraction {
    /// 0 to 1.
    pub share: f64,
    /// What it is a share of.
    pub ceiling: Ceiling,
    /// Where it comes from.
    pub source: &'static str,
}

/// What bounds an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ceiling {
    /// [`Gpu::matrix_rate`]
    MatrixRate,
    /// [`Gpu::bandwidth`]
    Bandwidth,
}

/// What ops of each kind are expected to reach. None of it was measured with these kernels.
#[derive(Debug)]
pub struct Fractions {
    /// Products of linear layers and of the vocabulary.
    pub products: Fraction,
    /// Attention, forward.
    pub attention_forward: Fraction,
    /// Attention, backward.
    pub attention_backward: Fraction,
    /// Ops on rows: LayerNorm, GELU, gathering, scattering.
    pub rows: Fraction,
    /// Embeddings and the gradients of their tables.
    pub lookups: Fraction,
    /// Norm and update over the flat buffers.
    pub optimizer: Fraction,
    /// What passes through the L2 cache.
    pub cache: Fraction,
}

impl Fractions {
    /// All of them by name.
    pub fn by_name(&self) -> [(&'static str, Fraction); 7] {
        [
            ("products", self.products),
            ("attention_forward", self.attention_forward),
            ("attention_backward", self.attention_backward),
            ("rows", self.rows),
            ("lookups", self.lookups),
            ("optimizer", self.optimizer),
            ("cache", self.cache),
        ]
    }
}

/// No op is expected to take less, in seconds: the latency of a launch, 2 to 4 µs by the header of classifier.cu.
pub const LAUNCH_SECONDS: f64 = 3e-6;

const fn of_matrix_rate(share: f64, source: &'static str) -> Fraction {
    Fraction { share, ceiling: Ceiling::MatrixRate, source }
}

const fn of_bandwidth(share: f64, source: &'static str) -> Fraction {
    Fraction { share, ceiling: Ceiling::Bandwidth, source }
}

const ROWS: Fraction = of_bandwidth(
    0.77,
    "cuDNN's LayerNorm on an H200: 3.7 to 3.85 of 4.8 TB/s forward, 3.4 to 3.8 backward (NVIDIA/cudnn-frontend, \
     benchmark/norms/results/h200); the header of layernorm.cu argues for 0.85",
);

const LOOKUPS: Fraction = of_bandwidth(
    0.68,
    "header of embedding.cu: floors of 31, 52 and 63 us, 55, 75 and 84 expected, as much goes by way of L2",
);

const OPTIMIZER: Fraction = of_bandwidth(
    0.85,
    "header of adamw.cu: a stream half of reads and half of writes loses time where memory turns round",
);

const CACHE: Fraction = of_bandwidth(
    0.89,
    "header of cross_entropy.cu: 94 MB of logits in 14 + 8 us, 4.3 TB/s of L2, beside an H200's 4.8 of memory",
);

const HOPPER: Fractions = Fractions {
    products: of_matrix_rate(
        0.61,
        "600 of 989 TFLOP/s, with wgmma: cuBLAS reaches 716 on 4096³ and 795 on 8192³ on an H100 (pranjalssh/fast.cu), and a \
         depth of 768 is assumed to cost some of it; for mma.sync alone the header of matmul.cu expects 350 to 450",
    ),
    attention_forward: of_matrix_rate(
        0.28,
        "282 of 989 TFLOP/s: FlashAttention-2, the same instructions, at L = 512, D = 64 on an H100 \
         (Dao-AILab/flash-attention, assets/flash3_fp16_fwd.png)",
    ),
    attention_backward: of_matrix_rate(
        0.20,
        "198 of 989 TFLOP/s: FlashAttention-2 at L = 512, D = 64 on an H100 \
         (Dao-AILab/flash-attention, assets/flash2_h100_fwd_bwd_benchmark.png)",
    ),
    rows: ROWS,
    lookups: LOOKUPS,
    optimizer: OPTIMIZER,
    cache: CACHE,
};

const AMPERE_AND_ADA: Fractions = Fractions {
    products: of_matrix_rate(0.85, "header of matmul.cu, for sm_80 to 89, where mma.sync is all there is"),
    attention_forward: of_matrix_rate(
        0.50,
        "FlashAttention-2 reaches 50 to 73 % on an A100 (arXiv 2307.08691, abstract); short sequences and D = 64 the least",
    ),
    attention_backward: of_matrix_rate(
        0.35,
        "the forward pass's, times 198 / 282, the ratio of FlashAttention-2's passes at L = 512, D = 64 on an H100",
    ),
    rows: ROWS,
    lookups: LOOKUPS,
    optimizer: OPTIMIZER,
    cache: CACHE,
};

/// The cards that are known.
pub static GPUS: [Gpu; 5] = [
    Gpu {
        id: "h200",
        name: "NVIDIA H200 SXM",
        device: "NVIDIA H200",
        matrix_rate: 989e12,
        bandwidth: 4.8e12,
        memory: 141_000_000_000,
        source: "NVIDIA H200 datasheet: BFLOAT16 1,979 TFLOPS with sparsity, half of it without; 4.8 TB/s; 141 GB",
        expected: &HOPPER,
    },
    Gpu {
        id: "h100",
        name: "NVIDIA H100 SXM",
        device: "NVIDIA H100 80GB HBM3",
        matrix_rate: 989e12,
        bandwidth: 3.35e12,
        memory: 80_000_000_000,
        source: "NVIDIA H100 datasheet, SXM: BFLOAT16 1,979 TFLOPS with sparsity, half of it without; 3.35 TB/s; 80 GB",
        expected: &HOPPER,
    },
    Gpu {
        id: "a100",
        name: "NVIDIA A100 SXM 80GB",
        device: "NVIDIA A100-SXM4-80GB",
        matrix_rate: 312e12,
        bandwidth: 2.039e12,
        memory: 80_000_000_000,
        source: "NVIDIA A100 datasheet, 80GB SXM: BFLOAT16 312 TFLOPS (624 with sparsity); 2,039 GB/s; 80 GB",
        expected: &AMPERE_AND_ADA,
    },
    Gpu {
        id: "l40s",
        name: "NVIDIA L40S",
        device: "NVIDIA L40S",
        matrix_rate: 362.05e12,
        bandwidth: 864e9,
        memory: 48_000_000_000,
        source: "NVIDIA L40S datasheet: BFLOAT16 362.05 TFLOPS (733 with sparsity); 864 GB/s; 48 GB",
        expected: &AMPERE_AND_ADA,
    },
    Gpu {
        id: "4090",
        name: "NVIDIA GeForce RTX 4090",
        device: "NVIDIA GeForce RTX 4090",
        matrix_rate: 165.2e12,
        bandwidth: 1008e9,
        memory: 24_000_000_000,
        source: "NVIDIA Ada GPU Architecture whitepaper, appendix A: BF16 with FP32 accumulate 165.2 TFLOPS (330.4 with \
                 sparsity); 1008 GB/s; 24 GB",
        expected: &AMPERE_AND_ADA,
    },
];

impl Gpu {
    /// The card of this name, in any case.
    ///
    /// # Errors
    ///
    /// The names that there are, for any other.
    pub fn by_id(id: &str) -> Result<&'static Gpu, String> {
        GPUS.iter().find(|gpu| gpu.id.eq_ignore_ascii_case(id)).ok_or_else(|| {
            let known: Vec<_> = GPUS.iter().map(|gpu| gpu.id).collect();
            format!("expected one of {}", known.join(", "))
        })
    }

    /// The card that a backend computes on, from what it says of itself: the driver's name, then more in brackets. Cards of
    /// another form (PCIe, NVL) have other rates and are not found.
    pub fn of_device(described: &str) -> Option<&'static Gpu> {
        let (name, _) = described.split_once(" (")?;
        GPUS.iter().find(|gpu| gpu.device == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_found_in_any_case() {
        assert_eq!(Gpu::by_id("L40S").unwrap().matrix_rate, 362.05e12);
        assert_eq!(Gpu::by_id("h300").unwrap_err(), "expected one of h200, h100, a100, l40s, 4090");
    }

    #[test]
    fn cards_are_known_by_their_drivers_name() {
        let id = |described| Gpu::of_device(described).map(|gpu| gpu.id);
        assert_eq!(id("NVIDIA H100 80GB HBM3 (sm_90a), bf16"), Some("h100"));
        assert_eq!(id("NVIDIA H200 (sm_90a), bf16"), Some("h200"));
        for other in ["NVIDIA H200 NVL (sm_90a), bf16", "simulated GPU, bf16", "cpu, 2 threads, AVX-512, f32"] {
            assert_eq!(id(other), None, "{other}");
        }
    }

    #[test]
    fn shares_are_shares_and_say_where_they_come_from() {
        for (name, fraction) in GPUS.iter().flat_map(|gpu| gpu.expected.by_name()) {
            assert!(fraction.share > 0.0 && fraction.share < 1.0 && fraction.source.len() > 20, "{name}");
        }
    }
}
