//! Where the parameters of each layer lie in the flat buffers. Handles, not data: they are the same
//! for weights, gradients and moments.

/// A run of elements in the flat parameter buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl Span {
    /// The indices it covers.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// y = x Wᵀ + b.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// W [outputs, inputs]
    pub weight: Span,
    /// b [outputs]
    pub bias: Span,
    /// Columns of x.
    pub inputs: usize,
    /// Columns of y.
    pub outputs: usize,
}

/// LayerNorm over the last dimension.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// γ [C]
    pub gamma: Span,
    /// β [C]
    pub beta: Span,
    /// Added to the variance.
    pub epsilon: f32,
}

/// The word and position tables and the LayerNorm after them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Embedding {
    /// [V, C]
    pub word: Span,
    /// [P, C]
    pub position: Span,
    /// The LayerNorm over their sum.
    pub norm: Norm,
    /// C
    pub width: usize,
    /// Id whose row of `word` gets no gradient from the embedding path.
    pub padding_idx: Option<u32>,
}

/// The tied projection onto the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VocabProjection {
    /// The word embeddings. [V, C]
    pub weight: Span,
    /// [V]
    pub bias: Span,
    /// V
    pub vocab: usize,
    /// C
    pub width: usize,
}

/// A parameter as the optimizer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateSpan {
    /// Where it lies.
    pub span: Span,
    /// Whether weight decay applies.
    pub decay: bool,
}
