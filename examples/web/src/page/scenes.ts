/** The shipped scenes, whose right answers are known. */
export interface Scene {
    readonly file: string;
    readonly describes: string;
    readonly questions: readonly { readonly question: string; readonly answer: string }[];
}

const FOLDER = "./scenes/";

/** Address of a scene's picture. */
export function addressOf({ file }: Scene): string {
    return FOLDER + file;
}

/** The scenes of this site; none where it ships none. */
export async function loadScenes(): Promise<readonly Scene[]> {
    const answer = await fetch(`${FOLDER}scenes.json`).catch(() => null);
    return answer?.ok ? ((await answer.json()) as readonly Scene[]) : [];
}

/** The right answer to a question about a scene; null where nobody knows it. */
export function rightAnswer(scene: Scene | null, question: string): string | null {
    return scene?.questions.find((known) => words(known.question) === words(question))?.answer ?? null;
}

/** Whether an answer is the right one, word for word: case, punctuation and spaces don't matter. */
export function isRight(answer: string, right: string): boolean {
    return words(answer) === words(right);
}

function words(text: string): string {
    return (text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []).join(" ");
}
