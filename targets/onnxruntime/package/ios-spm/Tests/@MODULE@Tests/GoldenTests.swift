import XCTest
@testable import @MODULE@

final class GoldenTests: XCTestCase {
    func testGoldenVectors() throws {
        try XCTSkipIf(!@MODULE@.hasGoldenVectors, "packaged without golden vectors")
        for result in try @MODULE@().selfTest() {
            XCTAssertTrue(result.passed, "\(result.name): \(result.message)")
        }
    }

    func testWrongSizeThrows() throws {
        XCTAssertThrowsError(try @MODULE@().predict(rgb: [1, 2, 3], width: 2, height: 2))
    }
}
