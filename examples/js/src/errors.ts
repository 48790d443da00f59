/** What a person can mend: one plain sentence that says what was refused, why, and the way out. */
export class UserError extends Error {
    override readonly name = "UserError";
}

/** The prompt and its pictures have more tokens than the package's context. */
export class ContextFull extends UserError {}
